"""An event loop whose clock jumps to whatever comes next: minutes of waiting in no time, the same each time."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any


class _Jumping(selectors.SelectSelector):
    """Waits for nothing: it moves the clock on by as long as it was to wait."""

    now_s = 1_000.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("everything waits, and for nothing that will come")
        self.now_s += max(0.0, timeout) + 1e-7  # some time always passes
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def run_virtually(case: Callable[[], Awaitable[Any]]) -> Any:
    """What the coroutine returns, on a loop of its own."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(case())
    finally:
        loop.close()
