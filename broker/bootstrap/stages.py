"""The threads that the stages run in: each works while there is work, waits, and outlives whatever a step meets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import structlog

from broker.bus.inbox import Delivery, Inbox
from broker.database.failures import is_disk_full, is_passing
from broker.domain.errors import BrokerError
from broker.stages.recorder import Recorder

__all__ = ["POLL_SECONDS", "Stages"]

POLL_SECONDS = 1.0
"""How long a stage waits where nobody wakes it."""

_EVENTS_PER_FLUSH = 64
_DRAIN_SECONDS = 0.1
_INBOX_SECONDS = 0.2  # how late the recorder may notice that it is to stop

_log = structlog.get_logger(__name__)


class Stages:
    """Threads with one stop. `failure` holds what a stage could not get past, for the person to see."""

    def __init__(self, full_disk_sentence: str) -> None:
        self.failure: BrokerError | None = None
        self.stopping = threading.Event()
        self._full_disk_sentence = full_disk_sentence
        self._threads: list[threading.Thread] = []

    def loop(
        self,
        name: str,
        step: Callable[[], object],
        wait: Callable[[], object],
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        """Run a stage: `step` while it says there is more, then `wait`. While it doesn't lead, it stands by."""

        def run() -> None:
            while not self.stopping.is_set():
                if not leads():
                    self.stopping.wait(POLL_SECONDS)
                elif not self._guarded(name, step):
                    wait()

        self.spawn(name, run)

    def record(self, recorder: Recorder, open_inbox: Callable[[int], Inbox]) -> None:
        """Run a recorder on an inbox. Once stopping, it goes on until the last events there are in."""
        self.spawn("recorder", lambda: self._record(recorder, open_inbox(_EVENTS_PER_FLUSH)))

    def spawn(self, name: str, run: Callable[[], None]) -> None:
        """Run it in a thread of its own."""
        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def pause(self) -> None:
        """Wait for the stop, at most until the next look is due."""
        self.stopping.wait(POLL_SECONDS)

    def join(self, timeout_seconds: float) -> None:
        """Wait until all have ended, or the time is over."""
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _guarded(self, name: str, step: Callable[[], object]) -> object:
        try:
            return step()
        except BrokerError as error:
            _log.warning("stage_stuck", stage=name, reason=str(error))
            self.failure = error
            self.pause()
        except Exception as error:  # noqa: BLE001 (a stage outlives whatever one step meets)
            self._note_failure(name, error)
            self.pause()
        return None

    def _note_failure(self, stage: str, error: Exception) -> None:
        _log.exception("stage_failed", stage=stage)
        if is_disk_full(error):
            self.failure = BrokerError(self._full_disk_sentence)

    def _record(self, recorder: Recorder, inbox: Inbox) -> None:
        try:
            while True:
                stopping = self.stopping.is_set()
                deliveries = inbox.receive(_EVENTS_PER_FLUSH, _DRAIN_SECONDS if stopping else _INBOX_SECONDS)
                while deliveries and not self._recorded(recorder, deliveries):
                    if self.stopping.wait(POLL_SECONDS):
                        break
                else:
                    inbox.acknowledge(deliveries)
                if stopping and not deliveries:
                    return
        finally:
            inbox.close()

    def _recorded(self, recorder: Recorder, deliveries: Sequence[Delivery]) -> bool:
        try:
            recorder.record(deliveries)
        except Exception as error:  # noqa: BLE001 (likewise; unacknowledged, the events come again)
            self._note_failure("recorder", error)
            if is_passing(error):
                return False
            # One event that can't be recorded must not hold up the others: alone, it is left out, and said.
            if len(deliveries) > 1:
                return all(self._recorded(recorder, [delivery]) for delivery in deliveries)
            _log.error("event_left_out", queue=deliveries[0].queue, error=type(error).__name__)
        return True
