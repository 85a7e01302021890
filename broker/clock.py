"""The wall clock, passed to whoever needs it, so that tests can hold it."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Clock", "SetClock", "utc_now_us"]

Clock = Callable[[], int]
"""Unix microseconds, UTC. Durations never come from it: they come from monotonic clocks."""


def utc_now_us() -> int:
    """The system's clock."""
    return time.time_ns() // 1_000


class SetClock:
    """Another machine's time, as far as its last word told; before that, this machine's."""

    def __init__(self, clock: Clock = utc_now_us) -> None:
        self._clock = clock
        self._offset_us = 0

    def __call__(self) -> int:
        return self._clock() + self._offset_us

    def set(self, now_us: int, asked_us: int, answered_us: int) -> None:
        """The other's time was `now_us`, half-way between two readings of this clock."""
        self._offset_us += now_us - (asked_us + answered_us) // 2
