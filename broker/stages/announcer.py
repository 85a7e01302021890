"""Announcer: whoever starts and stops instances hears on the jobs bus what each lane should hold, when that changes.

The planner keeps a change beside its plan, in the same transaction, and knows nothing of the bus. What waits here is
one row to a lane at most, its newest; so a bus that is away holds up nobody, and brings no old orders when it is back.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import structlog

from broker.bus.driver import PublishError
from broker.bus.envelope import Kind, seal
from broker.clock import Clock
from broker.database import desired_changes as desired
from broker.database.connection import Database
from broker.domain.desired import DESIRED_QUEUE, LaneDesired
from broker.domain.errors import named
from broker.signing import Signer

__all__ = ["Announcer", "DesiredPublisher"]

_REST_SECONDS = 5.0
_VALID_US = 86_400 * 1_000_000
"""What is older was followed by another, or is still asked for at the door."""

_log = structlog.get_logger(__name__)


class DesiredPublisher(Protocol):
    """The part of `broker.bus.publisher.Publisher` that the announcer needs."""

    def publish_events(self, queue: str, envelopes: Sequence[bytes]) -> None:
        """Returns when the bus has confirmed every message; PublishError names by index those that it has not."""


class Announcer:
    """Empties `desired_change`. For one thread."""

    def __init__(self, *, database: Database, publisher: DesiredPublisher, signer: Signer, clock: Clock) -> None:
        self._database = database
        self._publisher = publisher
        self._signer = signer
        self._clock = clock
        self._rests_until = 0.0

    def step(self) -> bool:
        """Tell what has changed; whether anything was told. A bus that fails is left alone for a while."""
        if time.monotonic() < self._rests_until:
            return False
        changes = self._database.read(desired.untold_changes)
        told = self._tell(changes) if changes else []
        if told:
            self._database.write(lambda connection: desired.forget_told(connection, told), idempotent=True)
            _log.info("desired_told", lanes={one.lane: one.desired for one in told})
        return bool(told)

    def _tell(self, changes: Sequence[LaneDesired]) -> list[LaneDesired]:
        """Those that the bus has confirmed."""
        try:
            self._publisher.publish_events(DESIRED_QUEUE, [self._sealed(one) for one in changes])
        except PublishError as error:
            self._rest(error)
            return [one for place, one in enumerate(changes) if place not in error.errors]
        except Exception as error:  # noqa: BLE001 (whatever the bus has, replies to producers must not wait for it)
            self._rest(error)
            return []
        return list(changes)

    def _rest(self, error: Exception) -> None:
        _log.warning("desired_not_told", queue=DESIRED_QUEUE, error=named(error))
        self._rests_until = time.monotonic() + _REST_SECONDS

    def _sealed(self, change: LaneDesired) -> bytes:
        return seal(self._signer, Kind.DESIRED, change.lane, change, now_us=self._clock(), valid_us=_VALID_US)
