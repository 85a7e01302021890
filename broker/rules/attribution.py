"""The time-sweep: an instance's time, divided at each instant among the jobs active at that instant.

With n jobs active during dt, each is charged dt / n. Written as the prefix integral I(t) of 1/n(t), a job's
share is I(end) - I(start): two look-ups, whatever happened in between. Cost attribution by fair time share
follows FOCUS split cost allocation (the shares of one charge sum to it). Integers throughout: I counts
femtoseconds, so that the rounding of each share is below a nanosecond, and every share is rounded down,
so that the shares never sum to more than the time that passed.
"""

from __future__ import annotations

__all__ = ["TimeSweep"]

_FEMTO_PER_NANO = 1_000_000
_FEMTO_PER_MICRO = 1_000_000_000


class TimeSweep:
    """Divides one instance's time among its jobs. Times are monotonic nanoseconds and must not run back."""

    __slots__ = ("_active", "_busy_ns", "_integral_fs", "_now_ns")

    def __init__(self) -> None:
        self._active = 0
        self._integral_fs = 0
        self._now_ns = 0
        self._busy_ns = 0

    def begin(self, now_ns: int) -> int:
        """A job starts; returns the mark to end it with."""
        self._advance(now_ns)
        self._active += 1
        return self._integral_fs

    def end(self, mark: int, now_ns: int) -> int:
        """The job that began with `mark` ends; returns its share of the instance's time in microseconds."""
        self._advance(now_ns)
        self._active -= 1
        return (self._integral_fs - mark) // _FEMTO_PER_MICRO

    @property
    def busy_us(self) -> int:
        """How long at least one job was active, in microseconds."""
        return self._busy_ns // 1_000

    def _advance(self, now_ns: int) -> None:
        passed_ns = now_ns - self._now_ns
        if passed_ns <= 0:
            return
        if self._active:
            self._integral_fs += passed_ns * _FEMTO_PER_NANO // self._active
            self._busy_ns += passed_ns
        self._now_ns = now_ns
