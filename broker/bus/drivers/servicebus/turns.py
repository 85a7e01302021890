"""Turns at something that bears one call at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Turns"]


class Turns:
    """One call at a time at one of the SDK's links, receives giving way to the rest."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._busy = False
        self._urgent = 0

    @property
    def urgent_waiting(self) -> int:
        """How many calls that go first wait for their turn."""
        return self._urgent

    @contextmanager
    def take(self, *, urgent: bool) -> Iterator[None]:
        with self._changed:
            self._urgent += urgent
            while self._busy or (self._urgent and not urgent):
                self._changed.wait()
            self._urgent -= urgent
            self._busy = True
        try:
            yield
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
