"""The recorder's loop: events of one bus are received, recorded, and only then acknowledged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import structlog

from broker.bootstrap.loop import Loop
from broker.bus.inbox import Delivery, Inbox
from broker.database.failures import is_passing
from broker.stages.recorder import Recorder

__all__ = ["recorder_loop"]

_EVENTS_PER_FLUSH = 64
_DRAIN_SECONDS = 0.1
_INBOX_SECONDS = 0.2  # how late it may notice that it is to stop

_log = structlog.get_logger(__name__)


def recorder_loop(recorder: Recorder, open_inbox: Callable[[int], Inbox]) -> Loop:
    """Once stopped, it goes on until the last events there are in. It never rests: receiving waits already."""
    recording = _Recording(recorder, open_inbox)
    return Loop(name="recorder", step=recording.step, finish=recording.finish)


class _Recording:
    """What can't be recorded now stays in hand, unacknowledged, and is tried again before more is received."""

    def __init__(self, recorder: Recorder, open_inbox: Callable[[int], Inbox]) -> None:
        self._recorder = recorder
        self._open_inbox = open_inbox
        self._inbox: Inbox | None = None
        self._in_hand: Sequence[Delivery] = ()

    def step(self) -> bool:
        """Record what is there."""
        self._record_next(_INBOX_SECONDS)
        return True

    def finish(self) -> None:
        """Record the last events, and let go of the bus; what could not be recorded comes again."""
        try:
            while self._record_next(_DRAIN_SECONDS):
                pass
        finally:
            self._let_go()

    def _record_next(self, wait_seconds: float) -> bool:
        """Whether there was something to record."""
        if not self._in_hand:
            with self._connected() as inbox:
                self._in_hand = inbox.receive(_EVENTS_PER_FLUSH, wait_seconds)
        if not self._in_hand:
            return False
        self._record(self._in_hand)
        with self._connected() as inbox:
            inbox.acknowledge(self._in_hand)
        self._in_hand = ()
        return True

    @contextmanager
    def _connected(self) -> Iterator[Inbox]:
        """An inbox that raised is given up: another takes its place, and what it had in hand comes again."""
        if self._inbox is None:
            self._inbox = self._open_inbox(_EVENTS_PER_FLUSH)
        try:
            yield self._inbox
        except BaseException:
            self._let_go()
            raise

    def _let_go(self) -> None:
        inbox, self._inbox, self._in_hand = self._inbox, None, ()
        if inbox is not None:
            with suppress(Exception):  # broken, perhaps; the bus takes the unacknowledged back by itself
                inbox.close()

    def _record(self, deliveries: Sequence[Delivery]) -> None:
        try:
            self._recorder.record(deliveries)
        except Exception as error:
            if is_passing(error):
                raise
            _log.exception("stage_failed", stage="recorder")
            # One event that can't be recorded must not hold up the others: alone, it is left out, and said.
            if len(deliveries) > 1:
                for delivery in deliveries:
                    self._record([delivery])
            else:
                _log.error("event_left_out", queue=deliveries[0].queue, error=type(error).__name__)
