"""Time for the queues: the system's, or one that a test moves.

Injected delays and the age of signatures run on real time, because the client at the other end does.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Protocol

__all__ = ["Clock", "ManualClock", "SystemClock"]


class Clock(Protocol):
    """Where now and later come from."""

    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC."""

    async def wait(self, changed: asyncio.Event, until_ms: int) -> None:
        """Return when it is set, or at that moment."""


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    async def wait(self, changed: asyncio.Event, until_ms: int) -> None:
        # A millisecond more, because the loop may wake a little early and the queue would find nothing due.
        seconds = max(until_ms - self.now_ms(), 0) / 1000 + 0.001
        with suppress(TimeoutError):
            await asyncio.wait_for(changed.wait(), seconds)


class ManualClock:
    """Stands still until `advance`, which must be called on the event loop's thread."""

    def __init__(self, start_ms: int | None = None) -> None:
        self._now_ms = time.time_ns() // 1_000_000 if start_ms is None else start_ms
        self._waiting: dict[asyncio.Event, int] = {}

    def now_ms(self) -> int:
        return self._now_ms

    async def wait(self, changed: asyncio.Event, until_ms: int) -> None:
        if until_ms <= self._now_ms:
            return
        self._waiting[changed] = until_ms
        try:
            await changed.wait()
        finally:
            self._waiting.pop(changed, None)

    def advance(self, seconds: float) -> None:
        self._now_ms += round(seconds * 1000)
        for changed, until_ms in self._waiting.items():
            if until_ms <= self._now_ms:
                changed.set()
