"""The meter: how much of the instance's time each job had."""

from __future__ import annotations

import time

from broker.rules.attribution import TimeSweep

__all__ = ["Meter", "Reading"]


class Reading:
    """One job under way: the sweep's mark and the monotonic time at its start."""

    __slots__ = ("mark", "started_ns")

    def __init__(self, mark: int, started_ns: int) -> None:
        self.mark = mark
        self.started_ns = started_ns


class Meter:
    """Meters one instance, for all shards that it runs at once. For one thread: the worker's event loop."""

    def __init__(self) -> None:
        self._sweep = TimeSweep()

    def begin(self) -> Reading:
        """A job reaches the engine."""
        now_ns = time.monotonic_ns()
        return Reading(self._sweep.begin(now_ns), now_ns)

    def end(self, reading: Reading) -> tuple[int, int]:
        """It left the engine: its share of the accelerator's time and its run time, both in microseconds."""
        now_ns = time.monotonic_ns()
        return self._sweep.end(reading.mark, now_ns), (now_ns - reading.started_ns) // 1_000

    @property
    def busy_us(self) -> int:
        """How long the engine had at least one job, in microseconds."""
        return self._sweep.busy_us
