"""A worker begins nothing beyond a deadline or a budget, and hands that back; real runner, two shards of each."""

from __future__ import annotations

import msgspec
import pytest

from broker.domain.errors import ErrorCode
from broker.domain.lane import EngineSettings, PriceMeter
from broker.domain.usage import Usage
from tests.unit.builders import MODEL, NOW_US, SECOND_US, a_job_ran, a_price, an_order
from tests.unit.hiring import Held, hiring, ran_jobs, returned
from workers.shard_budget import ShardBudget

PLACES = 4
SETTINGS = EngineSettings(driver="echo", models=(MODEL,), concurrency=PLACES)


@pytest.fixture
def hire():
    with hiring() as make:
        yield make


def due(order, *deadlines_us):
    """The order, its jobs due so."""
    jobs = [
        msgspec.structs.replace(job, deadline_us=due_us) for job, due_us in zip(order.jobs, deadlines_us, strict=True)
    ]
    return msgspec.structs.replace(order, jobs=tuple(jobs))


def test_what_is_due_before_its_turn_comes_is_handed_back_and_the_others_run(hire):
    engine = Held(PLACES)
    worker = hire(engine, engine=SETTINGS)
    soon, later = NOW_US + 10 * SECOND_US, NOW_US + 100 * SECOND_US
    # What is at the engine at the deadline runs on; of the rest, some are due, some later, some never.
    order = due(an_order(8), *[soon] * PLACES, soon, later, 0, soon)
    thread = worker.in_background(order)
    assert engine.all_there.wait(5)
    worker.clock.advance(10)
    engine.let_go(worker.loop)
    thread.join(5)
    events = worker.events()
    assert sorted(ran_jobs(events)) == [0, 1, 2, 3, 5, 6]
    assert returned(events) == [ErrorCode.JOB_EXPIRED]
    # Another shard, all of whose jobs are due later, isn't touched; one of an older broker says nothing of deadlines.
    for another in (due(an_order(3), later, later, later), an_order(3)):
        events = worker.run(another, valid_us=100 * SECOND_US)
        assert (len(ran_jobs(events)), returned(events)) == (3, [])


def test_once_a_shards_budget_is_spent_no_other_job_of_it_begins(hire):
    engine = Held(PLACES)
    worker = hire(engine, engine=SETTINGS)
    order = msgspec.structs.replace(an_order(20), budget_nano_usd=1)
    thread = worker.in_background(order)
    assert engine.all_there.wait(5)
    engine.let_go(worker.loop)
    thread.join(5)
    events = worker.events()
    # Nothing is known of what its jobs cost, so each place begins one; then all the rest goes back.
    assert (sorted(ran_jobs(events)), returned(events)) == ([0, 1, 2, 3], [ErrorCode.BUDGET_EXCEEDED])
    # Now it is known, so a second shard with so small a budget begins one, which every shard may.
    events = worker.run(msgspec.structs.replace(an_order(20), budget_nano_usd=1))
    assert (len(ran_jobs(events)), returned(events)) == (1, [ErrorCode.BUDGET_EXCEEDED])
    for without_end in (None, 10**15):
        events = worker.run(msgspec.structs.replace(an_order(20), budget_nano_usd=without_end))
        assert (len(ran_jobs(events)), returned(events)) == (20, [])


def test_a_stop_is_what_a_shard_is_handed_back_for_whatever_was_kept_back_before(hire):
    engine = Held(PLACES)
    worker = hire(engine, engine=SETTINGS)
    thread = worker.in_background(due(an_order(5), *[0] * PLACES, NOW_US))
    assert engine.all_there.wait(5)
    worker.runner.preempt()
    thread.join(5)
    assert returned(worker.events()) == [ErrorCode.PREEMPTED]


def test_an_unknown_cost_counts_with_its_bound():
    dollar = a_price(meter=PriceMeter.TOKEN, input_token_pico_usd=1_000, output_token_pico_usd=1_000)
    nothing, bound = Usage(), Usage(input_tokens=60, output_tokens=40)
    for upper, goes_on in ((None, True), (bound, False)):
        spending = ShardBudget(100, dollar, MODEL, {})
        spending.begin()
        spending.end(a_job_ran(0, usage=nothing, usage_upper=upper))
        assert spending.may_begin() is goes_on


def test_jobs_at_the_engine_count_what_others_cost_and_each_model_has_its_own_mean():
    price, costs = a_price(), {}  # a microsecond costs a nano-dollar
    first = ShardBudget(10_000, price, "dear", costs)
    first.begin()
    first.end(a_job_ran(0))  # 1,000 microseconds
    assert costs == {"dear": 1_000}
    cheap, dear = ShardBudget(3_000, price, "cheap", costs), ShardBudget(3_000, price, "dear", costs)
    begun = {}
    for name, spending in (("cheap", cheap), ("dear", dear)):
        begun[name] = 0
        while begun[name] < 10 and spending.may_begin():
            spending.begin()
            begun[name] += 1
    assert begun == {"cheap": 10, "dear": 3}
