"""A shard's runners: a spare waits, a runner yields its place, and a cancel hits one job."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from workers.job_runners import JobRunners
from workers.places import Places

_made: list[Shard] = []


class Shard:
    """One shard on some places, and what its jobs met: begun in this order, ended, or cancelled while they ran."""

    def __init__(self, count, places, *, at_once=(), **options):
        self.begun, self.ended, self.cancelled = [], [], []
        self.at_once = set(at_once)
        self.gates = [asyncio.Event() for _ in range(count)]
        self.running_max = 0
        self.runners = JobRunners(count, self._run, places, **options)
        self.task = asyncio.ensure_future(self.runners.run_all())
        _made.append(self)

    async def _run(self, index):
        self.begun.append(index)
        self.running_max = max(self.running_max, len(self.runners.running))
        try:
            if index not in self.at_once:
                await self.gates[index].wait()
        except asyncio.CancelledError:
            self.cancelled.append(index)
        else:
            self.ended.append(index)

    def let(self, *indices):
        for index in indices:
            self.gates[index].set()


async def settled():
    for _ in range(30):
        await asyncio.sleep(0)


def runs(coroutine):
    async def case():
        try:
            await asyncio.wait_for(coroutine, 10)
        finally:
            while _made:  # a job that swallows its cancel would else go on for ever where the case failed
                _made.pop().runners.stop()

    asyncio.run(case())


def test_a_spare_waits_and_takes_the_next_place_that_falls_free():
    async def case():
        places = Places(2)
        shard = Shard(4, places)
        await settled()
        other = Shard(2, places)
        await settled()
        assert (shard.runners.running, other.runners.running) == ([0, 1], [])
        shard.let(0)  # its runner goes on with the next job, at the same place
        await settled()
        assert (shard.runners.running, other.runners.running) == ([1, 2], [])
        shard.let(1, 2, 3)
        await shard.task  # its spare had asked before the other shard, which therefore comes after all of them
        await settled()
        assert (sorted(shard.ended), other.runners.running) == ([0, 1, 2, 3], [0, 1])
        other.let(0, 1)
        await other.task

    runs(case())


def test_a_place_that_another_shard_gives_back_goes_to_the_spare():
    async def case():
        places = Places(2)
        other = Shard(1, places)
        await settled()
        shard = Shard(3, places)
        await settled()
        assert (shard.runners.running, other.runners.running) == ([0], [0])
        other.let(0)
        await other.task
        await settled()
        assert shard.runners.running == [0, 1]
        shard.let(0, 1, 2)
        await shard.task

    runs(case())


def test_an_engine_that_answers_at_once_needs_no_second_runner():
    async def case():
        shard = Shard(50, Places(8), at_once=range(50))
        await shard.task
        assert (shard.ended, shard.running_max) == (list(range(50)), 1)

    runs(case())


def test_a_runner_yields_its_place_to_who_comes_ahead_and_no_job_is_lost():
    async def case():
        places = Places(1)
        long = Shard(3, places)
        await settled()
        ahead, another = Shard(2, places, ahead=True), Shard(1, places, ahead=True)
        await settled()
        long.let(0)
        await settled()
        assert (long.begun, ahead.begun, another.begun) == ([0], [0], [])
        ahead.let(0, 1)  # ahead: it keeps its place for its second job, though another wants it
        await settled()
        assert (ahead.ended, long.begun, another.begun) == ([0, 1], [0], [0])
        another.let(0)
        long.let(1, 2)
        await asyncio.gather(long.task, ahead.task, another.task)
        assert long.ended == [0, 1, 2]

    runs(case())


def test_a_cancel_hits_one_job_and_its_runner_goes_on():
    async def case():
        shard = Shard(4, Places(1))
        await settled()
        assert shard.runners.cancel(0) is True
        assert shard.runners.cancel(0) is True  # asked again before it ended
        assert shard.runners.cancel(2) is False
        await settled()
        assert (shard.cancelled, shard.runners.running) == ([0], [1])
        shard.let(1, 3)
        await shard.task
        assert (shard.begun, shard.ended, shard.cancelled) == ([0, 1, 3], [1, 3], [0])

    runs(case())


def test_after_a_cancel_a_timeout_inside_the_next_job_still_works():
    """A cancel that stayed on the runner's account would make `asyncio.timeout` raise CancelledError."""

    async def case():
        seen = []

        async def run(index):
            try:
                async with asyncio.timeout(5 if index == 0 else 0.01):
                    await asyncio.Event().wait()
            except (TimeoutError, asyncio.CancelledError) as error:
                seen.append(type(error))

        runners = JobRunners(2, run, Places(1))
        task = asyncio.ensure_future(runners.run_all())
        await settled()
        runners.cancel(0)
        await task
        assert seen == [asyncio.CancelledError, TimeoutError]

    runs(case())


def test_a_stop_ends_what_runs_and_begins_nothing_else():
    async def case():
        places = Places(2)
        shard = Shard(5, places)
        await settled()
        other = Shard(1, places)
        await settled()
        shard.runners.stop()
        await shard.task
        assert (shard.begun, sorted(shard.cancelled), shard.ended) == ([0, 1], [0, 1], [])
        await settled()
        assert other.runners.running == [0]  # the places came back
        other.let(0)
        await other.task
        stopped = Shard(2, places)
        stopped.runners.stop()
        await stopped.task
        assert stopped.begun == []

    runs(case())


def test_exclusive_jobs_have_the_engine_to_themselves():
    async def case():
        places = Places(3)
        suspect = Shard(2, places, exclusive=True)
        await settled()
        other = Shard(3, places)
        await settled()
        assert (suspect.runners.running, other.runners.running) == ([0], [])
        suspect.let(0, 1)
        await settled()
        assert (suspect.ended, other.runners.running) == ([0, 1], [0])
        other.let(0, 1, 2)
        await asyncio.gather(suspect.task, other.task)
        assert suspect.running_max == 1

    runs(case())


@given(st.data())
def test_whatever_ends_is_cancelled_or_yields_each_job_is_run_once_or_left_out(data):
    async def case():
        places = Places(data.draw(st.integers(1, 4)))
        sizes = data.draw(st.lists(st.integers(0, 6), min_size=2, max_size=3))
        ahead = data.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
        shards = [Shard(size, places, ahead=first) for size, first in zip(sizes, ahead, strict=True)]
        left_out = [set() for _ in shards]
        steps = [(number, index) for number, size in enumerate(sizes) for index in range(size)]
        for number, index in data.draw(st.permutations(steps)):
            shard = shards[number]
            done = index in shard.ended or index in shard.cancelled
            if not done and data.draw(st.booleans()) and not shard.runners.cancel(index):
                left_out[number].add(index)
            shard.let(index)
            if data.draw(st.booleans()):
                await settled()
        await asyncio.gather(*(shard.task for shard in shards))
        for size, shard, out in zip(sizes, shards, left_out, strict=True):
            assert sorted(shard.begun) == sorted(set(range(size)) - out)
            assert sorted(shard.ended + shard.cancelled) == sorted(shard.begun)

    runs(case())
