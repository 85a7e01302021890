"""The engine's places: who may be with it at once, and who comes next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

__all__ = ["Places"]

_KEPT_SECONDS = 10.0
_PLACES_PER_KEPT = 32
_PLACES_MIN = 16


class Places:
    """A fixed number of places, for the coroutines of one event loop.

    `limit_to` closes some of them for now. Who has one keeps it, but should give it up between two jobs (`is_over`).

    Who comes *ahead* gets the next place that falls free; otherwise they come in the order in which they asked. While
    some come ahead, and where there are 16 places or more, the others leave one in 32 free for the next of them.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = count
        self._closed = 0
        self._ahead: deque[asyncio.Future[None]] = deque()
        self._others: deque[asyncio.Future[None]] = deque()
        self._kept = 0
        self._kept_until = 0.0
        self._exclusive = asyncio.Lock()
        self._unlimited: set[asyncio.Future[None]] = set()  # in line as others are, but closed places are theirs too

    @property
    def is_wanted(self) -> bool:
        """Whether a place that has done a job should be given up before the next, by who isn't ahead."""
        return bool(self._ahead) or self._free < self._closed + self._kept_open

    @property
    def is_over(self) -> bool:
        """Whether more are taken than are open."""
        return self._free < self._closed

    @property
    def in_line(self) -> int:
        """How many wait for a place, behind those that come ahead."""
        return len(self._others)

    def has_room(self, *, for_all: bool = False) -> bool:
        """Whether a place is free now, closed or not; `for_all`: whether each is."""
        return self._free == self.count if for_all else self._free > 0

    def limit_to(self, count: int) -> None:
        """Keep so many open."""
        closed = max(0, self.count - count)
        if closed != self._closed:
            self._closed = closed
            self._let_in()

    @asynccontextmanager
    async def one(self, *, ahead: bool = False, unlimited: bool = False) -> AsyncIterator[None]:
        """A place; `unlimited`: also one that is closed."""
        if ahead:
            self._keep_some()
        await self._take(self._ahead if ahead or unlimited else self._others, unlimited=unlimited)
        try:
            yield
        finally:
            self._give_back()

    @asynccontextmanager
    async def all(self) -> AsyncIterator[None]:
        """The engine to oneself; who has places already ends first."""
        async with self._exclusive, AsyncExitStack() as held:  # one at a time: two would each keep half for ever
            for _ in range(self.count):
                await self._take(self._ahead, unlimited=True)
                held.callback(self._give_back)
            yield

    @property
    def _kept_open(self) -> int:
        """Of few places none is kept."""
        return self._kept if self.count - self._closed >= _PLACES_MIN else 0

    async def _take(self, line: deque[asyncio.Future[None]], *, unlimited: bool = False) -> None:
        turn = asyncio.get_running_loop().create_future()
        line.append(turn)
        if unlimited:
            self._unlimited.add(turn)
        self._let_in()
        try:
            await turn
        except asyncio.CancelledError:
            self._unlimited.discard(turn)
            if turn in line:
                line.remove(turn)
            elif not turn.cancelled():
                self._give_back()  # it had come, and is not used
            raise

    def _give_back(self) -> None:
        self._free += 1
        self._let_in()

    def _let_in(self) -> None:
        closed = self._closed
        while self._ahead and self._free > (0 if self._ahead[0] in self._unlimited else closed):
            self._admit(self._ahead)
        while self._others and self._free > closed + self._kept_open:
            self._admit(self._others)

    def _admit(self, line: deque[asyncio.Future[None]]) -> None:
        turn = line.popleft()
        self._unlimited.discard(turn)
        if not turn.done():
            self._free -= 1
            turn.set_result(None)

    def _keep_some(self) -> None:
        loop = asyncio.get_running_loop()
        self._kept_until = loop.time() + _KEPT_SECONDS
        if not self._kept and self.count >= _PLACES_MIN:
            self._kept = max(1, self.count // _PLACES_PER_KEPT)
            loop.call_at(self._kept_until, self._keep_on)

    def _keep_on(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._kept_until:
            loop.call_at(self._kept_until, self._keep_on)
        else:
            self._kept = 0
            self._let_in()
