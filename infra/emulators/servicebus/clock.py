"""Time for the queues: the system's, or one that a test moves.

Only what the service promises in time hangs on it (locks, schedules, expiry, tokens); heartbeats and injected delays
run on real time, because the client at the other end does.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Alarm", "Clock", "ManualClock", "SystemClock"]


class Alarm(Protocol):
    """A call that is still to come."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """Where now and later come from."""

    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC."""

    def call_at(self, moment_ms: int, action: Callable[[], None]) -> Alarm:
        """Call it on the event loop, not before that moment."""


class SystemClock:
    """The machine's clock; must be made and used on the event loop's thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def call_at(self, moment_ms: int, action: Callable[[], None]) -> Alarm:
        # A millisecond more, because the loop may wake a little early and the queue would find nothing due.
        return self._loop.call_later(max(moment_ms - self.now_ms(), 0) / 1000 + 0.001, action)


class _ManualAlarm:
    def __init__(self, action: Callable[[], None]) -> None:
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        self.action = None


class ManualClock:
    """Stands still until `advance`, which must be called on the event loop's thread."""

    def __init__(self, start_ms: int | None = None) -> None:
        self._now_ms = time.time_ns() // 1_000_000 if start_ms is None else start_ms
        self._alarms: list[tuple[int, int, _ManualAlarm]] = []
        self._count = itertools.count()

    def now_ms(self) -> int:
        return self._now_ms

    def call_at(self, moment_ms: int, action: Callable[[], None]) -> Alarm:
        alarm = _ManualAlarm(action)
        heapq.heappush(self._alarms, (moment_ms, next(self._count), alarm))
        return alarm

    def advance(self, seconds: float) -> None:
        """Move on, calling what falls due in its order, each at its own moment."""
        end_ms = self._now_ms + round(seconds * 1000)
        while self._alarms and self._alarms[0][0] <= end_ms:
            moment_ms, _, alarm = heapq.heappop(self._alarms)
            self._now_ms = max(self._now_ms, moment_ms)
            if alarm.action is not None:
                alarm.action()
        self._now_ms = end_ms
