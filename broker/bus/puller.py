"""The messages of one channel: pulled with credit, delivered once, held until settled.

Threads are daemons and never the consumer's own: a receive that hangs can delay neither an acknowledgement
nor the process's exit.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import structlog

from broker.bus.driver import BusUnavailable, LaneDriver, Received, SharedReceive
from broker.bus.settler import Settler, Verdict

__all__ = ["Arrival", "PrefetchOptions", "Prefetched"]

log = structlog.get_logger()

BACKOFF_MAX_SECONDS = 2.0
ALL_QUEUES = ""


class PrefetchOptions(NamedTuple):
    """What a user of the transport may set.

    `receive_seconds`: the longest one receive waits. `receive_errors_max`: consecutive failures before the
    consumer is told. `max_attempts`: deliveries after which a message is moved aside; 0 for no limit.
    `close_seconds`: how long closing waits for settlements in flight.
    """

    receive_seconds: float = 5.0
    receive_errors_max: int = 5
    max_attempts: int = 0
    close_seconds: float = 5.0


class Arrival(NamedTuple):
    """A received and decoded message."""

    received: Received
    message: dict[str, Any]


class Prefetched:
    """The messages of one channel, from receive to settlement.

    It never delivers more than the prefetch limit, and never pulls more than fits beside what is ready and what
    is delivered but unsettled; only where each queue needs a puller of its own may one more receive per further
    queue wait undelivered. Every held lease is renewed until it is settled or the channel closes. `on_change`
    is called, without the lock, whenever something can be delivered or `error` was set.
    """

    def __init__(
        self,
        driver: LaneDriver,
        decode: Callable[[Received], dict[str, Any]],
        on_change: Callable[[], None],
        options: PrefetchOptions,
    ) -> None:
        self.error: Exception | None = None
        self._driver = driver
        self._decode = decode
        self._on_change = on_change
        self._options = options
        self._lock = threading.Lock()
        self._has_credit = threading.Condition(self._lock)
        self._prefetch = 0
        self._ready: deque[Arrival] = deque()
        self._held: dict[str, Arrival] = {}
        self._queues: dict[str, None] = {}  # in the order in which they were added
        self._tags = itertools.count(1)
        self._pullers: dict[str, threading.Thread] = {}
        self._settler = Settler(driver, self._unsettled)
        self._closed = False

    # The consumer's side.

    def start(self, queue: str) -> None:
        """Begin to pull from the queue."""
        name = ALL_QUEUES if isinstance(self._driver, SharedReceive) else queue
        with self._lock:
            self._queues[queue] = None
            if name not in self._pullers:
                puller = threading.Thread(target=self._pull, args=(name,), name=f"bus-puller-{name}", daemon=True)
                self._pullers[name] = puller
                puller.start()
        if name == ALL_QUEUES:
            self._driver.wake()  # a receive in flight doesn't know the new queue

    def stop(self, queue: str) -> None:
        """Stop pulling from the queue and give back what was not delivered; what was delivered stays ours."""
        with self._lock:
            self._queues.pop(queue, None)
            undelivered = [arrival.received for arrival in self._ready if arrival.received.queue == queue]
            self._ready = deque(arrival for arrival in self._ready if arrival.received.queue != queue)
            self._has_credit.notify_all()
        self._driver.wake()
        self._settler.submit(Verdict.RELEASE, undelivered)

    def take(self) -> tuple[str, Arrival] | None:
        """The next message to deliver under a fresh delivery tag, or None."""
        with self._lock:
            if not self._ready or (self._prefetch and len(self._held) >= self._prefetch):
                return None
            if not self._prefetch:
                self._has_credit.notify_all()  # without a limit, what is ready is all that counts
            return self._hold(self._ready.popleft())

    def fetch(self, queue: str) -> tuple[str, Arrival] | None:
        """One message straight from the bus, without waiting and outside the prefetch limit."""
        arrivals = self._sort_out(self._driver.receive(queue, 1, 0.0))
        with self._lock:
            return self._hold(arrivals[0]) if arrivals else None

    def settle(self, tag: str, verdict: Verdict, reason: str = "") -> None:
        """Decide on a delivered message. A second decision, or one after closing, changes nothing."""
        with self._lock:
            arrival = self._held.pop(tag, None)
            deliverable = bool(self._ready)
            # Credit returns now, not when the bus has heard of it: the round trip is off the critical path.
            # A local settlement is carried out first instead, so that a release can't be overtaken.
            if not self._driver.settles_locally:
                self._has_credit.notify_all()
        if arrival is not None:
            self._settler.submit(verdict, [arrival.received], reason)
        if self._driver.settles_locally:
            with self._lock:
                self._has_credit.notify_all()
        if deliverable:
            self._on_change()

    def set_prefetch(self, count: int) -> None:
        """At most so many messages delivered and unsettled; 0 for no limit."""
        with self._lock:
            self._prefetch = count
            self._has_credit.notify_all()
        self._on_change()

    def close(self) -> list[threading.Thread]:
        """Give everything back and flush what was decided.

        Returns the pullers still inside a receive; what that brings is given back too, while the driver lives.
        """
        with self._lock:
            self._closed = True
            leftover = [arrival.received for arrival in (*self._held.values(), *self._ready)]
            self._held.clear()
            self._ready.clear()
            self._queues.clear()
            pullers = [puller for puller in self._pullers.values() if puller is not threading.current_thread()]
            self._has_credit.notify_all()
        self._driver.wake()
        self._settler.submit(Verdict.RELEASE, leftover)
        for puller in pullers:
            puller.join(0.5)
        self._settler.close(self._options.close_seconds)
        return [puller for puller in pullers if puller.is_alive()]

    # The pullers' side.

    def _pull(self, name: str) -> None:
        errors = 0
        while (wanted := self._wait_for_credit(name)) is not None:
            queues, credit = wanted
            try:
                received = self._receive(queues, credit)
            except Exception as error:  # noqa: BLE001  # whatever a driver raises must not end the thread silently
                errors += 1
                log.warning("receive_failed", queues=queues, error=repr(error), consecutive=errors)
                if errors >= self._options.receive_errors_max:
                    self._fail(error)
                    return
                with self._lock:
                    self._has_credit.wait(min(0.05 * 2**errors, BACKOFF_MAX_SECONDS))
                continue
            errors = 0
            if received:
                self._accept(self._sort_out(received))

    def _wait_for_credit(self, name: str) -> tuple[list[str], int] | None:
        """The queues to receive from and how many, once there is room; None when the puller must end."""
        with self._lock:
            while not self._closed:
                if name == ALL_QUEUES:
                    queues = list(self._queues)
                else:
                    queues = [name] if name in self._queues else []
                limit = self._prefetch or self._driver.max_receive
                taken = len(self._ready) + (len(self._held) if self._prefetch else 0)
                if queues and taken < limit:
                    return queues, min(limit - taken, self._driver.max_receive)
                self._has_credit.wait()
            return None

    def _receive(self, queues: list[str], credit: int) -> list[Received]:
        if isinstance(self._driver, SharedReceive):
            return self._driver.receive_any(queues, credit, self._options.receive_seconds)
        return self._driver.receive(queues[0], credit, self._options.receive_seconds)

    def _sort_out(self, received: Iterable[Received]) -> list[Arrival]:
        """Decode each message on its own; move aside what can't be decoded or has come too often."""
        arrivals: list[Arrival] = []
        for message in received:
            if 0 < self._options.max_attempts < message.attempts:
                reason = f"delivered {self._options.max_attempts} times without being settled"
                self._settler.submit(Verdict.DEAD_LETTER, [message], reason)
                continue
            try:
                arrivals.append(Arrival(message, self._decode(message)))
            except Exception as error:  # noqa: BLE001  # foreign bytes may fail anywhere in decoding
                self._settler.submit(Verdict.DEAD_LETTER, [message], f"undecodable: {type(error).__name__}")
        return arrivals

    def _accept(self, arrivals: list[Arrival]) -> None:
        with self._lock:
            wanted = [arrival for arrival in arrivals if arrival.received.queue in self._queues]
            unwanted = [arrival.received for arrival in arrivals if arrival.received.queue not in self._queues]
            self._ready.extend(wanted)
        if unwanted:
            self._settler.submit(Verdict.RELEASE, unwanted)
        if wanted:
            self._settler.start()
            self._on_change()

    def _fail(self, error: Exception) -> None:
        self.error = error if isinstance(error, BusUnavailable) else BusUnavailable(repr(error))
        self._on_change()

    # Shared.

    def _hold(self, arrival: Arrival) -> tuple[str, Arrival]:
        tag = str(next(self._tags))
        self._held[tag] = arrival
        self._settler.start()
        return tag, arrival

    def _unsettled(self) -> list[Received]:
        with self._lock:
            return [arrival.received for arrival in (*self._held.values(), *self._ready)]
