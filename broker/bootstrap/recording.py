"""The recorder's loop: events of one bus are received, recorded, and only then acknowledged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import structlog

from broker.bootstrap.loop import Loop
from broker.bus.inbox import Delivery, Inbox
from broker.database.failures import is_passing
from broker.domain.errors import named
from broker.stages.recorder import NotRecorded, Recorder

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
        self._put_off: Sequence[Delivery] = ()

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
                self._in_hand = [*self._put_off, *inbox.receive(_EVENTS_PER_FLUSH, wait_seconds)]
        if not self._in_hand:
            return False
        left = self._record(self._in_hand)
        unsettled = {id(delivery) for delivery in (*left.rejected, *left.put_off)}
        done = [delivery for delivery in self._in_hand if id(delivery) not in unsettled]
        with self._connected() as inbox:
            inbox.acknowledge(done)
            inbox.reject(left.rejected)
        self._in_hand, self._put_off = (), left.put_off
        return bool(done or left.rejected)

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
        inbox, self._inbox = self._inbox, None
        self._in_hand = self._put_off = ()
        if inbox is not None:
            with suppress(Exception):  # broken, perhaps; the bus takes the unacknowledged back by itself
                inbox.close()

    def _record(self, deliveries: Sequence[Delivery]) -> NotRecorded[Delivery]:
        try:
            return self._recorder.record(deliveries)
        except Exception as error:
            if is_passing(error):
                raise
            _log.exception("stage_failed", stage="recorder")
            # One event that can't be recorded must not hold up the others: alone, it is moved aside, and said.
            if len(deliveries) == 1:
                _log.error("event_left_out", queue=deliveries[0].queue, error=named(error))
                return NotRecorded(list(deliveries), [])
        left: NotRecorded[Delivery] = NotRecorded([], [])
        for delivery in deliveries:
            one = self._record([delivery])
            left.rejected.extend(one.rejected)
            left.put_off.extend(one.put_off)
        return left
