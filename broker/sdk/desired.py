"""For whoever starts and stops instances: what each lane should hold, as the broker announces it on the jobs bus.

`DesiredEvents(bus_url, Path("broker.pub")).receive(60)` brings, for each lane, the newest that was said
since. At its start such a program asks `Client.desired(lane)`, for what was announced before may be gone.
"""

from __future__ import annotations

import time
from pathlib import Path

import structlog

from broker.bus.envelope import EnvelopeError, open_desired
from broker.bus.inbox import Delivery, Inbox
from broker.clock import Clock, utc_now_us
from broker.domain.desired import DESIRED_QUEUE, LaneDesired
from broker.keys import read_trusted
from broker.signing import KeyRing

__all__ = ["DesiredEvents"]

_log = structlog.get_logger(__name__)


class DesiredEvents:
    """The queue `desired`, for one reader in one thread: of two, each would hear a part.

    `trusted` has the broker's public keys, or is the file that `broker keys` wrote them to.

    Closed, or killed, while something is unacknowledged, that comes again.
    """

    def __init__(
        self, bus_url: str, trusted: KeyRing | Path, *, clock: Clock = utc_now_us, prefetch: int = 100
    ) -> None:
        self._inbox = Inbox(bus_url, [DESIRED_QUEUE], prefetch)
        self._ring = trusted if isinstance(trusted, KeyRing) else read_trusted(trusted)
        self._clock = clock
        self._limit = prefetch
        self._generations: dict[str, int] = {}
        self._unacknowledged: list[Delivery] = []

    def receive(self, wait_seconds: float) -> list[LaneDesired]:
        """The newest word on each lane of which there is news, once there is any; nothing older than was given before.

        What `receive` gave before counts as done, and is acknowledged.
        """
        self._inbox.acknowledge(self._unacknowledged)
        self._unacknowledged = []
        deadline = time.monotonic() + wait_seconds
        newest: dict[str, LaneDesired] = {}
        while not newest and (left := deadline - time.monotonic()) > 0:
            for delivery in self._inbox.receive(self._limit, left):
                word = self._opened(delivery)
                if word and word.generation > self._generations.get(word.lane, -1):
                    self._generations[word.lane] = word.generation
                    newest[word.lane] = word
        return list(newest.values())

    def _opened(self, delivery: Delivery) -> LaneDesired | None:
        try:
            word = open_desired(self._ring, delivery.envelope, self._clock()).body
        except EnvelopeError as error:
            _log.warning("desired_rejected", queue=delivery.queue, reason=str(error))
            self._inbox.reject([delivery])
            return None
        self._unacknowledged.append(delivery)
        return word

    def close(self) -> None:
        """Disconnect."""
        self._inbox.close()
