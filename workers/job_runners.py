"""Who runs a shard's jobs: runners, each with one of the engine's places, at which it runs one job after another.

Three ideas, a method each:

- *A spare runner waits* (`_let_a_spare_wait`). A place that falls free goes to this shard only if one of its runners
  waits for it. So each runner that got a place starts the next, which waits for one: the only spare.
- *A runner yields its place* (`_should_yield`) between two jobs where another shard should have it. No job is lost by
  that: the spare takes over with the next place.
- *A cancel hits one job* (`cancel`). What runs a job is its runner's task, so the cancel is taken back once the job
  has ended: it was meant for this job, not for the runner's next.

Everything here happens on one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from workers.places import Places

__all__ = ["JobRunners"]


class JobRunners:
    """Runs jobs `0` to `count - 1`, in this order, as many at once as there are places for.

    `run_job` runs the job of an index and reports its end: also where it is cancelled, for it then catches
    CancelledError and returns. `ahead` runners get the next places, and keep theirs; with `exclusive` a job has the
    engine to itself.
    """

    def __init__(
        self,
        count: int,
        run_job: Callable[[int], Awaitable[None]],
        places: Places,
        *,
        ahead: bool = False,
        exclusive: bool = False,
    ) -> None:
        self._count = count
        self._run_job = run_job
        self._places = places
        self._ahead = ahead or exclusive
        self._exclusive = exclusive
        self._next_index = 0
        self._left_out: set[int] = set()
        self._at_engine: dict[int, asyncio.Task[None]] = {}
        self._runners: set[asyncio.Task[None]] = set()
        self._stopped = False

    @property
    def running(self) -> list[int]:
        """The jobs at the engine now, in order."""
        return sorted(self._at_engine)

    async def run_all(self) -> None:
        """Returns when each job has been run, left out or, after a stop, never begun."""
        try:
            self._start_runner()
            while self._runners:
                await asyncio.wait(self._runners)
        finally:
            del self._run_job  # it knows the shard, whose bodies would else stay until garbage is looked for

    def stop(self) -> None:
        """Cancel the jobs that run, and begin no other."""
        self._stopped = True
        for runner in self._runners:
            runner.cancel()

    def cancel(self, index: int) -> bool:
        """Whether the job runs, and is cancelled now; one that hasn't begun never will."""
        if runner := self._at_engine.get(index):
            runner.cancel()
            return True
        self._left_out.add(index)
        return False

    def _start_runner(self) -> None:
        if not self._stopped and self._next_index < self._count:
            runner = asyncio.get_running_loop().create_task(self._run())
            self._runners.add(runner)
            runner.add_done_callback(self._runners.discard)

    async def _run(self) -> None:
        runner = asyncio.current_task()
        assert runner is not None  # noqa: S101 (a coroutine on the loop runs in a task)
        async with self._places.all() if self._exclusive else self._places.one(ahead=self._ahead):
            self._let_a_spare_wait()
            while not self._stopped and self._next_index < self._count:
                index = self._next_index
                self._next_index += 1
                if index not in self._left_out:
                    self._at_engine[index] = runner
                    await self._run_job(index)
                    del self._at_engine[index]
                    if runner.cancelling():
                        _take_back_cancels(runner)
                if self._should_yield():
                    break

    def _let_a_spare_wait(self) -> None:
        """Not at once, but when this runner waits for its engine: one that answers at once needs no other."""
        asyncio.get_running_loop().call_soon(self._start_runner)

    def _should_yield(self) -> bool:
        return not self._ahead and self._places.is_wanted


def _take_back_cancels(runner: asyncio.Task[None]) -> None:
    """They were meant for the job that has just ended."""
    while runner.cancelling():
        runner.uncancel()
