"""Who runs a shard's jobs: runners, each with one of the engine's places, at which it runs one job after another.

Four ideas, a method each:

- *A spare runner waits* (`_let_a_spare_wait`). A place that falls free goes to this shard only if one of its runners
  waits for it. So each runner that got a place starts the next, which waits for one: the only spare.
- *A runner yields its place* (`_should_yield`) between two jobs where another shard should have it. No job is lost by
  that: the spare takes over with the next place.
- *A cancel hits one job* (`cancel`). What runs a job is its runner's task, so the cancel is taken back once the job
  has ended: it was meant for this job, not for the runner's next.
- *A shard gives up* (`hand_back`) where the engine is in trouble: it begins no further job. One that comes meanwhile
  may send its first as a probe (`_may_begin`); where that goes well, it goes on. Who can't send it waits a while before
  it gives up (`_hold`): at once it would only come again, many times a second, while its broker believes the lane well.

Everything here happens on one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

from broker.domain.errors import ErrorCode
from workers.places import Places
from workers.throttle import Throttle

__all__ = ["JobRunners"]


class JobRunners:
    """Runs jobs `0` to `count - 1`, in this order, as many at once as there are places for.

    `run_job` runs the job of an index and reports its end: also where it is cancelled, for it then catches
    CancelledError and returns. `ahead` runners get the next places, and keep theirs; with `exclusive` a job has the
    engine to itself. With a `throttle` they go at the engine's pace.
    """

    def __init__(
        self,
        count: int,
        run_job: Callable[[int], Awaitable[None]],
        places: Places,
        *,
        ahead: bool = False,
        exclusive: bool = False,
        throttle: Throttle | None = None,
    ) -> None:
        self._count = count
        self._run_job = run_job
        self._places = places
        self._ahead = ahead or exclusive
        self._exclusive = exclusive
        self._throttle = throttle
        self._is_probing = False
        self._gave_up: ErrorCode | None = None
        self._next_index = 0
        self._left_out: set[int] = set()
        self._at_engine: dict[int, asyncio.Task[None]] = {}
        self._runners: set[asyncio.Task[None]] = set()
        self._stopped = False

    @property
    def running(self) -> list[int]:
        """The jobs at the engine now, in order."""
        return sorted(self._at_engine)

    @property
    def waiting(self) -> int:
        """How many jobs haven't begun."""
        return self._count - self._next_index

    @property
    def gave_up(self) -> ErrorCode | None:
        """Why jobs were never begun, where the engine's trouble is the reason."""
        is_left = any(index not in self._left_out for index in range(self._next_index, self._count))
        return self._gave_up if is_left else None

    async def run_all(self) -> None:
        """Returns when each job has been run, left out or, after a stop or in trouble, never begun."""
        try:
            if self._throttle is not None:
                self._throttle.enter(self)
            if self._throttle is not None and not self._may_begin(self._throttle):
                self._add_runner(self._hold(self._throttle))
            else:
                self._start_runner()
            while self._runners:
                await asyncio.wait(self._runners)
        finally:
            if self._throttle is not None:
                self._end_probe(self._throttle)
                self._throttle.leave(self)
            del self._run_job  # it knows the shard, whose bodies would else stay until garbage is looked for

    def stop(self) -> None:
        """Cancel the jobs that run, and begin no other."""
        self._stopped = True
        for runner in self._runners:
            runner.cancel()

    def hand_back(self, code: ErrorCode) -> None:
        """Begin no other job, for this reason; what runs goes on to its end."""
        self._stopped, self._gave_up = True, code
        at_engine = set(self._at_engine.values())
        for runner in self._runners:
            if runner not in at_engine:
                runner.cancel()

    def cancel(self, index: int) -> bool:
        """Whether the job runs, and is cancelled now; one that hasn't begun never will."""
        if runner := self._at_engine.get(index):
            runner.cancel()
            return True
        self._left_out.add(index)
        return False

    def _may_begin(self, throttle: Throttle) -> bool:
        """In trouble one job at a time goes through, and none that would have to wait for a place."""
        if throttle.trouble is None:
            return True
        if not throttle.may_probe or not self._places.has_room(for_all=self._exclusive):
            return False
        self._is_probing = throttle.is_probed = True
        return True

    async def _hold(self, throttle: Throttle) -> None:
        await throttle.hold()
        self._runners.clear()  # this one, for nothing else runs yet
        if self._may_begin(throttle):
            self._start_runner()
        elif throttle.trouble is not None:
            self.hand_back(throttle.trouble)

    def _end_probe(self, throttle: Throttle) -> None:
        if self._is_probing:
            self._is_probing = throttle.is_probed = False
            if throttle.trouble is not None:
                self.hand_back(throttle.trouble)

    def _start_runner(self) -> None:
        if self._is_probing and self._runners:
            return
        if not self._stopped and self._next_index < self._count:
            self._add_runner(self._run())

    def _add_runner(self, running: Coroutine[Any, Any, None]) -> None:
        runner = asyncio.get_running_loop().create_task(running)
        self._runners.add(runner)
        runner.add_done_callback(self._runners.discard)

    async def _run(self) -> None:
        runner = asyncio.current_task()
        assert runner is not None  # noqa: S101 (a coroutine on the loop runs in a task)
        async with self._place():
            self._let_a_spare_wait()
            while not self._stopped and self._next_index < self._count:
                if (
                    self._throttle is not None
                    and not self._throttle.pace.is_calm
                    and (wait_s := self._throttle.wait_s) > 0
                ):
                    await asyncio.sleep(wait_s)
                    if self._should_yield():
                        break
                    continue
                index = self._next_index
                self._next_index += 1
                if index not in self._left_out:
                    self._at_engine[index] = runner
                    await self._run_job(index)
                    del self._at_engine[index]
                    if runner.cancelling():
                        _take_back_cancels(runner)
                    if self._is_probing and self._throttle is not None:
                        self._end_probe(self._throttle)
                        self._let_a_spare_wait()
                if self._should_yield():
                    break

    def _place(self) -> AbstractAsyncContextManager[None]:
        if self._exclusive:
            return self._places.all()
        return self._places.one(ahead=self._ahead, unlimited=self._is_probing)

    def _let_a_spare_wait(self) -> None:
        """Not at once, but when this runner waits for its engine: one that answers at once needs no other."""
        asyncio.get_running_loop().call_soon(self._start_runner)

    def _should_yield(self) -> bool:
        return not self._exclusive and (self._places.is_over or (not self._ahead and self._places.is_wanted))


def _take_back_cancels(runner: asyncio.Task[None]) -> None:
    """They were meant for the job that has just ended."""
    while runner.cancelling():
        runner.uncancel()
