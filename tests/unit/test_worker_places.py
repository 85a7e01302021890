"""Jobs and the engine's places: how many run at once, who waits, and what a stop or a cancel means for each."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from broker.bus.apps import NotTaken
from broker.domain.errors import ErrorCode
from broker.domain.lane import EngineSettings
from broker.domain.outcome import Outcome
from broker.domain.shard import Bitmap
from tests.unit.builders import an_order
from tests.unit.hiring import Broken, hiring, ran_jobs, returned, until
from workers.engines.echo import EchoEngine


@pytest.fixture
def hire():
    with hiring() as make:
        yield make


class Tracked:
    """Each request waits until the test ends it by its place in the shard; a driver of the engine port."""

    def __init__(self):
        self.inside, self.ended = set(), set()
        self.inside_count = self.most_inside = 0  # two shards may have jobs of the same number inside

    async def run(self, request):
        number = int(request.body.split(b"hello ")[1].split(b'"')[0])
        self.inside.add(number)
        self.inside_count += 1
        self.most_inside = max(self.most_inside, self.inside_count)
        try:
            async with asyncio.timeout(5):
                while number not in self.ended:  # noqa: ASYNC110 (the test sets it from its own thread)
                    await asyncio.sleep(0.001)
        finally:
            self.inside.discard(number)
            self.inside_count -= 1
        return await EchoEngine().run(request)


def _crowded(hire, concurrency=2, **lane):
    """A worker whose engine takes two jobs at a time."""
    engine = Tracked()
    worker = hire(engine, engine=EngineSettings(driver="echo", models=("m",), concurrency=concurrency), **lane)
    worker.door.lease_seconds = 30
    return engine, worker


def test_an_engine_never_has_more_jobs_than_places_over_all_its_shards(hire):
    engine, worker = _crowded(hire, slots=2)
    threads = [worker.in_background(an_order(10)) for _ in range(2)]
    until(lambda: len(worker.door.claims) == 2 and engine.inside_count == 2)
    worker.settle()  # a third would be inside by now
    engine.ended = set(range(10))
    for thread in threads:
        thread.join(5)
    assert engine.most_inside == 2
    assert sum(len(event.jobs) for event in worker.events()) == 20


def _numbered(first, jobs_count):
    """Jobs numbered from `first` on."""
    order = an_order(first + jobs_count)
    return msgspec.structs.replace(order, jobs=order.jobs[first:])


def test_the_next_shards_jobs_get_the_places_that_a_straggler_leaves_and_all_share_the_accelerators_time(hire):
    engine, worker = _crowded(hire, slots=1)
    threads = [worker.in_background(_numbered(0, 3))]
    until(lambda: engine.inside == {0, 1})
    engine.ended = {1, 2}
    threads.append(worker.in_background(_numbered(10, 3)))
    until(lambda: engine.inside == {0, 10})
    threads.append(worker.in_background(_numbered(20, 1)))
    engine.ended = {1, 2, 10, 11, 12}
    until(lambda: engine.inside == {0, 20})  # one shard's last job keeps two shards from nothing
    assert len(worker.door.claims) == 3
    worker.runner.renew_soon()
    until(lambda: len(worker.door.renewals) >= 2)
    assert {Bitmap(one.running).to_bytes() for one in worker.door.renewals[-2:]} == {b"\x01"}
    engine.ended = set(range(30))
    for thread in threads:
        thread.join(5)
    jobs = [job for event in worker.events() for job in event.jobs]
    busy_us = worker.deployment.meter.busy_us
    assert len(jobs) == 7
    assert busy_us - len(jobs) <= sum(job.usage.accelerator_us for job in jobs) <= busy_us
    assert engine.most_inside == 2


def test_few_small_shards_are_claimed_before_there_is_a_place_for_them(hire):
    engine, worker = _crowded(hire, slots=1)
    threads = [worker.in_background(_numbered(number, 1)) for number in range(8)]
    until(lambda: engine.inside_count == 2 and len(worker.door.claims) >= 3)
    worker.settle()
    assert len(worker.door.claims) <= 4  # one has the slot, and one may have given it up before its job began
    engine.ended = set(range(8))
    for thread in threads:
        thread.join(5)
    assert sum(len(event.jobs) for event in worker.events()) == 8


def test_a_cancelled_job_ends_alone_whether_it_runs_or_waits(hire):
    engine, worker = _crowded(hire)
    thread = worker.in_background(an_order(5))
    until(lambda: engine.inside == {0, 1})
    worker.door.cancelled_jobs = Bitmap.of([0, 3]).to_bytes()
    worker.runner.renew_soon()
    until(lambda: engine.inside == {1, 2})  # the place of job 0 went to the next one
    engine.ended = {1, 2, 4}
    thread.join(5)
    events = worker.events()
    ran = ran_jobs(events)
    assert {index for index, job in ran.items() if job.error_code is ErrorCode.JOB_CANCELLED} == {0, 3}
    assert {index for index, job in ran.items() if job.outcome is Outcome.SUCCEEDED} == {1, 2, 4}
    assert (sum(len(event.jobs) for event in events), returned(events)) == (5, [])
    assert ran[3].usage.accelerator_us < ran[1].usage.accelerator_us


def test_a_job_cancelled_before_the_claim_never_reaches_the_engine(hire):
    worker = hire(Broken(AssertionError("it ran")))
    worker.door.cancelled_jobs = Bitmap.of([0]).to_bytes()
    assert ran_jobs(worker.run(an_order()))[0].error_code is ErrorCode.JOB_CANCELLED


def test_jobs_that_waited_for_a_place_at_a_stop_never_ran(hire):
    engine, worker = _crowded(hire)
    thread = worker.in_background(an_order(5))
    until(lambda: engine.inside == {0, 1})
    worker.runner.preempt()
    thread.join(5)
    events = worker.events()
    assert {(index, job.outcome) for index, job in ran_jobs(events).items()} == {
        (0, Outcome.PREEMPTED), (1, Outcome.PREEMPTED)
    }  # fmt: skip
    assert returned(events) == [ErrorCode.PREEMPTED]


def test_a_suspect_has_the_engine_to_itself_and_two_suspects_one_after_the_other(hire):
    engine, worker = _crowded(hire, slots=4)
    alone = [msgspec.structs.replace(an_order(words=words), exclusive=True) for words in ("x hello", "y hello")]
    threads = [worker.in_background(an_order(2))]
    until(lambda: engine.inside == {0, 1})
    threads += [worker.in_background(order) for order in alone]
    until(lambda: len(worker.door.claims) == 3)
    threads.append(worker.in_background(an_order(1)))
    engine.ended, engine.most_inside = {1}, 0
    until(lambda: engine.inside_count == 1)
    worker.settle()  # another would be at the free place by now
    assert engine.most_inside == 0
    engine.ended = {0, 1}
    for thread in threads:
        thread.join(5)
    assert engine.most_inside <= 1
    assert len(worker.events()) == 4


# ------------------------------------------------------------------------------------------------- beside the slots


def _beside(first, jobs_count=1):
    return msgspec.structs.replace(_numbered(first, jobs_count), tenant_id="small", beside=True)


def test_what_runs_beside_needs_no_slot_and_gets_the_next_place_and_its_message_is_done_with_once_claimed(hire):
    engine, worker = _crowded(hire, slots=1)
    thread = worker.in_background(an_order(10))
    until(lambda: engine.inside == {0, 1})
    beside = _beside(50)
    worker.runner.run(worker.seal(beside))  # comes back although engine and slot are taken
    assert len(worker.door.claims) == 2
    until(lambda: worker.deployment.places.is_wanted)
    engine.ended.add(1)
    until(lambda: engine.inside == {0, 50})
    engine.ended.add(50)
    until(lambda: engine.inside == {0, 2})
    worker.runner.wait(5, beside.shard_id)
    (event,) = worker.events()
    assert event.shard_id == worker.door.claims[1].shard_id
    engine.ended = set(range(10))
    thread.join(5)
    assert engine.most_inside == 2


def test_a_long_shard_gives_its_places_up_to_what_runs_beside_and_loses_no_job(hire):
    engine, worker = _crowded(hire, slots=1)
    engine.ended = set(range(100))
    thread = worker.in_background(an_order(100))
    for _ in range(5):
        worker.runner.run(worker.seal(_beside(50, 3)))
    worker.runner.wait(5)
    thread.join(5)
    assert sum(len(event.jobs) for event in worker.events()) == 115
    assert engine.most_inside <= 2


def test_while_work_comes_beside_a_place_is_left_free_for_it(hire):
    engine, worker = _crowded(hire, concurrency=16, slots=1)
    thread = worker.in_background(an_order(100))
    until(lambda: engine.inside == set(range(16)))
    worker.runner.run(worker.seal(_beside(200)))
    until(lambda: worker.deployment.places.is_wanted)
    engine.ended.add(0)
    until(lambda: engine.inside == {*range(1, 16), 200})
    engine.ended.add(200)
    until(lambda: engine.inside == set(range(1, 16)))
    worker.settle()  # another of the long shard would be inside by now
    assert engine.inside == set(range(1, 16))
    worker.runner.run(worker.seal(_beside(201)))
    until(lambda: engine.inside == {*range(1, 16), 201})
    engine.ended = set(range(300))
    thread.join(5)
    assert engine.most_inside == 16


def test_what_runs_beside_is_handed_back_when_the_worker_leaves(hire):
    engine, worker = _crowded(hire, slots=1)
    worker.runner.run(worker.seal(_beside(50, 3)))
    until(lambda: engine.inside == {50, 51})
    worker.runner.preempt()
    worker.runner.wait(5)
    assert returned(worker.events()) == [ErrorCode.PREEMPTED]


def test_what_was_to_run_beside_goes_back_to_the_bus_where_the_broker_cannot_be_asked(hire):
    _, worker = _crowded(hire)

    def claim(question):
        raise OSError("the broker is away")

    worker.door.claim = claim
    with pytest.raises(NotTaken):
        worker.runner.run(worker.seal(_beside(50)))
