"""A lane's slots at one worker: how many shards at once have jobs that wait for the engine's places.

A shard gives its slot up when its last jobs begin, not when they end: so the next shard's jobs get the places that fall
free, and none waits idle for a straggler.
"""

from __future__ import annotations

import threading

from workers.places import Places

__all__ = ["Slot", "Slots"]

_AHEAD_PART = 8
"""While one in so many places' worth of jobs still waits, the next shard is claimed: that takes a moment."""


class Slot:
    """One slot, until it is given up; from any thread."""

    def __init__(self, slots: threading.Semaphore, places: Places) -> None:
        self._slots = slots
        self._places = places
        self.few = places.count // _AHEAD_PART
        """So many jobs or fewer are about to begin, and no reason to keep it."""
        self._given_up = threading.Event()
        self._lock = threading.Lock()

    def give_up(self) -> None:
        """Once, however often it is called."""
        with self._lock:
            if self._given_up.is_set():
                return
            self._given_up.set()
        self._slots.release()

    def wait(self) -> None:
        """Until it is given up."""
        self._given_up.wait()

    def is_due(self, waiting_jobs: int) -> bool:
        """Whether its shard, of whose jobs so many haven't begun, may give it up. On the event loop.

        Not while another shard's last few wait, too: a worker would claim more and more small ones.
        """
        return waiting_jobs == 0 or (waiting_jobs <= self.few and not self._places.in_line)


class Slots:
    """So many of them, for one lane."""

    def __init__(self, count: int, places: Places) -> None:
        self._free = threading.Semaphore(count)
        self._places = places

    def take(self, timeout_seconds: float) -> Slot | None:
        """One, or None where none got free in this time."""
        return Slot(self._free, self._places) if self._free.acquire(timeout=timeout_seconds) else None
