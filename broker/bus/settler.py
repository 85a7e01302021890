"""Settling and renewing leases away from the consumer's thread, in batches, with a few retries."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Sequence
from enum import Enum
from typing import NamedTuple

import structlog

from broker.bus.driver import LaneDriver, Received

__all__ = ["Settler", "Verdict"]

log = structlog.get_logger()

TRIES_MAX = 4
RETRY_SECONDS = 0.25


class Verdict(Enum):
    """What is to become of a delivered message."""

    ACK = "ack"
    RELEASE = "release"  # back to the queue at once, for anyone
    DEAD_LETTER = "dead_letter"


class _Decision(NamedTuple):
    verdict: Verdict
    message: Received
    reason: str = ""
    tries: int = 0


class Settler:
    """Carries out decisions about leases and renews the ones still held.

    A decision is handed over at once; the round trip is the settler's thread's, batched by queue and verdict.
    What still fails after four tries is left to the lease's end: the bus then delivers the message again.
    Drivers that settle locally are called in the caller's thread. Leases are renewed at a third of their time.
    """

    def __init__(self, driver: LaneDriver, received_held: Callable[[], list[Received]]) -> None:
        self._driver = driver
        self._received_held = received_held
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._pending: list[_Decision] = []
        self._thread: threading.Thread | None = None
        self._closing = False
        self._renew_every_seconds = driver.lease_seconds / 3

    def start(self) -> None:
        """Begin to renew; harmless when begun."""
        with self._lock:
            if self._thread is None and not self._closing:
                self._thread = threading.Thread(target=self._run, name="bus-settler", daemon=True)
                self._thread.start()

    def submit(self, verdict: Verdict, received: Sequence[Received], reason: str = "") -> None:
        """Take over the decision; never blocks on the network."""
        if verdict is Verdict.DEAD_LETTER:
            for message in received:
                log.warning("message_dead_lettered", queue=message.queue, attempts=message.attempts, reason=reason)
        decisions = [_Decision(verdict, message, reason) for message in received]
        if self._driver.settles_locally:
            self._carry_out(decisions)
            return
        self.start()
        with self._lock:
            self._pending += decisions
            self._changed.notify()

    def close(self, seconds: float) -> None:
        """Carry out what was decided, for at most so long, and stop renewing."""
        with self._lock:
            self._closing = True
            self._changed.notify()
            thread = self._thread
        if thread is None:
            self._carry_out(self._pending)
        elif thread is not threading.current_thread():
            thread.join(seconds)
            if thread.is_alive():
                log.warning("settlements_abandoned", count=len(self._pending))

    def _run(self) -> None:
        renew_at = time.monotonic() + self._renew_every_seconds
        retry_at = 0.0
        while True:
            with self._lock:
                while not self._closing:
                    now = time.monotonic()
                    wake_at = max(now, retry_at) if self._pending else renew_at
                    if wake_at <= now or renew_at <= now:
                        break
                    self._changed.wait(min(wake_at, renew_at) - now)
                batch, self._pending = self._pending, []
                closing = self._closing
            failed = self._carry_out(batch)
            if failed:
                retry_at = time.monotonic() + RETRY_SECONDS
                with self._lock:
                    self._pending = failed + self._pending
            if closing:
                if not failed:
                    return
                time.sleep(RETRY_SECONDS)
            elif time.monotonic() >= renew_at:
                self._renew()
                renew_at = time.monotonic() + self._renew_every_seconds

    def _carry_out(self, batch: Sequence[_Decision]) -> list[_Decision]:
        """Returns what should be tried again."""
        groups: dict[tuple[Verdict, str, str], list[_Decision]] = {}
        for decision in batch:
            groups.setdefault((decision.verdict, decision.message.queue, decision.reason), []).append(decision)
        again: list[_Decision] = []
        for (verdict, queue, reason), decisions in groups.items():
            try:
                self._call(verdict, queue, reason, [decision.message for decision in decisions])
            except Exception as error:  # noqa: BLE001  # whatever a driver raises, the other groups must still be settled
                log.warning("settlement_failed", verdict=verdict.value, queue=queue, error=repr(error))
                again += [
                    decision._replace(tries=decision.tries + 1)
                    for decision in decisions
                    if decision.tries + 1 < TRIES_MAX and not self._driver.settles_locally
                ]
        return again

    def _call(self, verdict: Verdict, queue: str, reason: str, received: list[Received]) -> None:
        handles = [message.handle for message in received]
        match verdict:
            case Verdict.ACK:
                refused = self._driver.ack(queue, handles)
                if refused:
                    log.warning("acknowledgements_refused", queue=queue, count=len(refused))
            case Verdict.RELEASE:
                self._driver.release(queue, handles, 0.0)
            case Verdict.DEAD_LETTER:
                self._driver.dead_letter(queue, received, reason)

    def _renew(self) -> None:
        by_queue: dict[str, list[Hashable]] = {}
        for message in self._received_held():
            by_queue.setdefault(message.queue, []).append(message.handle)
        for queue, handles in by_queue.items():
            try:
                lost = self._driver.extend(queue, handles, self._driver.lease_seconds)
            except Exception as error:  # noqa: BLE001  # the next round, a third of the lease later, tries again
                log.warning("lease_renewal_failed", queue=queue, error=repr(error))
                continue
            if lost:
                # Someone else may have the message now. The fence is the database's, so this only warns.
                log.warning("leases_lost", queue=queue, count=len(lost))
