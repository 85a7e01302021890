"""The throttle before one engine: lets its shards' jobs through at the engine's pace. For one event loop."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from broker.domain.errors import ErrorCode
from workers.pace import Pace
from workers.places import Places

__all__ = ["Passing", "Throttle"]

_WAIT_MIN_S = 0.001
_HOLD_PART = 0.25
_HOLD_MIN_S, _HOLD_MAX_S = 0.5, 5.0


class Passing(Protocol):
    """Who has jobs to send: a shard's runners."""

    def hand_back(self, code: ErrorCode) -> None:
        """Begin no other job; those at the engine end by themselves."""


class Throttle:
    """Says which call may begin, and is told how each ended.

    While the engine is in trouble, one job at a time may go through it, as a probe, and none before the time that its
    server names; who hasn't it holds on for a while, and then gives up. `begin` comes just before each call, and one of
    the other three after it. `seconds` is the clock of the event loop.
    """

    def __init__(self, places: Places, seconds: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self.pace = Pace(places.count)
        self.places = places
        self.is_probed = False
        self._passing: set[Passing] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._in_trouble_since_s = 0.0
        self._is_out_of_trouble = asyncio.Event()
        places.limit_to(self.pace.limit)

    @property
    def trouble(self) -> ErrorCode | None:
        """The last code of an engine in trouble."""
        return self.pace.trouble

    @property
    def may_probe(self) -> bool:
        """Whether one job may try the engine in trouble: none tries it now, and it doesn't ask to be left alone."""
        return not self.is_probed and self._seconds() >= self.pace.alone_until_s

    @property
    def wait_s(self) -> float:
        """How long the next call must wait, a millisecond at least; 0 where it needn't."""
        wait_s = self.pace.sends_at_s - self._seconds()
        return max(wait_s, _WAIT_MIN_S) if wait_s > 0 else 0.0

    async def hold(self) -> None:
        """Until the trouble is over, or a quarter of the time for which it has lasted: half a second to five."""
        lasted_s = self._seconds() - self._in_trouble_since_s
        with suppress(TimeoutError):
            async with asyncio.timeout(min(max(lasted_s * _HOLD_PART, _HOLD_MIN_S), _HOLD_MAX_S)):
                await self._is_out_of_trouble.wait()

    def enter(self, passing: Passing) -> None:
        """Tell it when trouble begins."""
        self._passing.add(passing)

    def leave(self, passing: Passing) -> None:
        """Its last job has ended, or it gave up."""
        self._passing.discard(passing)

    def begin(self) -> int:
        """A call is sent. The mark is for `failed`."""
        pace = self.pace
        if pace.is_calm:
            return pace.begin(0.0)
        mark = pace.begin(self._seconds())
        self._follow()
        return mark

    def succeeded(self) -> None:
        """It went well."""
        was_calm = self.pace.is_calm
        self.pace.succeeded(self._seconds())
        if not was_calm:
            self._follow()

    def failed(self, mark: int, code: ErrorCode, retry_after_s: float) -> None:
        """It ended with an error."""
        had_trouble = self.pace.trouble
        self.pace.failed(mark, code, retry_after_s, self._seconds())
        self._follow()
        if had_trouble is None and self.pace.trouble is not None:
            self._in_trouble_since_s = self._seconds()
            self._is_out_of_trouble.clear()
            for passing in tuple(self._passing):
                passing.hand_back(self.pace.trouble)

    def let_go(self) -> None:
        """It was cancelled."""
        self.pace.let_go()

    def open(self) -> None:
        """The engine was brought up: what spoke against it is over."""
        self.pace.well(self._seconds())
        self._follow()

    def _follow(self) -> None:
        self.places.limit_to(self.pace.limit)
        if self.pace.trouble is None:
            self._is_out_of_trouble.set()
        due_s = self.pace.changes_at_s
        if self._timer is not None and self._timer.when() > due_s:
            self._timer.cancel()
            self._timer = None
        if self._timer is None and due_s != math.inf:
            self._timer = asyncio.get_running_loop().call_at(due_s, self._step)

    def _step(self) -> None:
        self._timer = None
        self.pace.step(self._seconds())
        self._follow()
