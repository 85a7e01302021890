"""Which messages a driver has leased and not settled, for the buses that have to be told to take them back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable

__all__ = ["HeldLeases"]

_KEPT_SECONDS = 60.0
"""For so long after its end a lease is still told from one that never was."""


class HeldLeases:
    """By queue, each with its end on the monotonic clock. For several threads.

    A lease that was never settled, since the bus went on refusing that, is forgotten a minute after its end.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._ends: dict[str, dict[Hashable, float]] = {}
        self._swept_at = monotonic()

    def add(self, queue: str, handles: Iterable[Hashable], seconds: float) -> None:
        """These were received."""
        now = self._monotonic()
        with self._lock:
            if now - self._swept_at > _KEPT_SECONDS:
                self._forget_ended(now)
            self._ends.setdefault(queue, {}).update(dict.fromkeys(handles, now + seconds))

    def extend(self, queue: str, handles: Iterable[Hashable], seconds: float) -> None:
        """Their leases end later. What was settled meanwhile stays settled."""
        until = self._monotonic() + seconds
        with self._lock:
            held = self._ends.get(queue, {})
            held.update({handle: until for handle in handles if handle in held})

    def ended(self, queue: str, handles: Iterable[Hashable]) -> dict[Hashable, float]:
        """Those whose lease is over, and for how many seconds."""
        now = self._monotonic()
        with self._lock:
            held = self._ends.get(queue, {})
            return {handle: now - held[handle] for handle in handles if held.get(handle, now) < now}

    def let_go(self, queue: str, handles: Iterable[Hashable]) -> None:
        """These were settled."""
        with self._lock:
            held = self._ends.get(queue, {})
            for handle in handles:
                held.pop(handle, None)

    def take_all(self) -> dict[str, list[Hashable]]:
        """All that are held, and hold none of them any longer."""
        with self._lock:
            held, self._ends = self._ends, {}
        return {queue: list(handles) for queue, handles in held.items()}

    def __len__(self) -> int:
        with self._lock:
            return sum(len(handles) for handles in self._ends.values())

    def _forget_ended(self, now: float) -> None:
        self._swept_at = now
        for queue, handles in self._ends.items():
            self._ends[queue] = {handle: end for handle, end in handles.items() if end > now - _KEPT_SECONDS}
