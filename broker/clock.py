"""The wall clock, passed to whoever needs it, so that tests can hold it."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Clock", "utc_now_us"]

Clock = Callable[[], int]
"""Unix microseconds, UTC. Durations never come from it: they come from monotonic clocks."""


def utc_now_us() -> int:
    """The system's clock."""
    return time.time_ns() // 1_000
