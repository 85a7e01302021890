"""The dealer of the running broker, on a real database: weights, what is late, preemptions, budgets; two of each."""

from __future__ import annotations

from collections import Counter

import pytest

from broker.database import plans
from broker.database.arrivals import ArrivalTerms, keep_arrivals
from broker.domain.job import Constraints
from broker.domain.lane import EngineSettings, Market, Supply
from broker.rules.placement.policy import Policy
from tests.unit.builders import MODEL, a_job_ran, a_lane, a_preemption, a_price, some_lines

COST = 2_500
"""Of one job on a lane of `a_lane` with four slots, in nano-USD."""

ENGINE = EngineSettings(driver="echo", models=(MODEL,), concurrency=8)
SPOT = a_lane("spot")
STEADY = a_lane("steady", market=Market.ON_DEMAND, price=a_price(9_000_000_000))


def run_rounds(world, rounds: int) -> Counter[str]:
    """Jobs done by tenant, where all that is sent is done before the next look."""
    done: Counter[str] = Counter()
    for _ in range(rounds):
        for shard in world.claimed():
            world.record(world.ran(shard, *map(a_job_ran, range(shard.jobs_count))))
            done[shard.tenant_id] += shard.jobs_count
        world.clock.advance(1)
    return done


def learn(world, **seconds) -> None:
    """A job ends on each of these lanes, after so many seconds."""
    for lane, run_s in seconds.items():
        world.take_in(some_lines(1, lane), constraints=Constraints(lanes=(lane,)))
        (shard,) = world.claimed()
        world.record(world.ran(shard, a_job_ran(run_us=round(run_s * 1e6))))
        world.clock.advance(1)
        world.planner.step()


@pytest.mark.parametrize(("weights", "times"), [({}, 1.0), ({"a": 3.0}, 3.0), ({"a": 3.0, "b": 1.5}, 2.0)])
def test_tenants_get_work_done_by_their_weights(make_world, weights, times):
    world = make_world(a_lane(slots=4, engine=ENGINE, shard_jobs_max=10))
    world.place_by(Policy(tenant_weights=weights))
    for tenant in "ab":
        world.take_in(some_lines(2_000, tenant), tenant_id=tenant)
    done = run_rounds(world, 12)
    assert done["a"] == pytest.approx(times * done["b"], rel=0.12)


def test_a_turn_is_measured_in_work_so_that_a_slow_lane_costs_a_tenant_no_turns(make_world):
    fast, slow = a_lane("fast", shard_jobs_max=10), a_lane("slow", jobs_per_second=10.0, shard_jobs_max=10)
    world = make_world(fast, slow)
    world.take_in(some_lines(500, "a"), tenant_id="a", constraints=Constraints(lanes=("slow",)))
    world.take_in(some_lines(500, "b"), tenant_id="b")
    world.dispatch()
    turns = world.dispatcher._dealing._turns
    sent = Counter(shard.tenant_id for shard in world.all_shards().values() for _ in range(shard.jobs_count))
    # Ten jobs are a tenth of a second of the fast lane, wherever they go.
    assert turns.had("a") - turns.had("b") == pytest.approx((sent["a"] - sent["b"]) / 100, abs=1e-6)


def test_what_is_late_goes_after_what_must_start_soon_and_can_and_before_what_has_time(make_world):
    world = make_world(a_lane(slots=8, engine=ENGINE, jobs_per_second=1 / 8, shard_jobs_max=1))
    learn(world, **{"lane-a": 8.0})
    late = world.take_in(some_lines(2, "late"), window_seconds=20)
    calm = world.take_in(some_lines(2, "calm"), window_seconds=7_200)
    world.clock.advance(15)
    soon = world.take_in(some_lines(2, "soon"), window_seconds=60)
    order = [shard.batch_id for shard in world.dispatch()]
    assert order == [one.batch_id for one in (soon, soon, late, late, calm, calm)]


def test_nothing_is_late_that_the_fastest_lane_could_still_do(make_world):
    fast = a_lane("fast", engine=ENGINE, shard_jobs_max=1, slots=4, price=a_price(9_000_000_000))
    slow = a_lane("slow", engine=ENGINE, jobs_per_second=1 / 8, shard_jobs_max=1, slots=4)
    world = make_world(fast, slow)
    learn(world, fast=0.02, slow=16.0)
    hurried = world.take_in(some_lines(2, "hurried"), window_seconds=20)
    world.clock.advance(15)
    soon = world.take_in(some_lines(2, "soon"), window_seconds=60)
    order = [shard.batch_id for shard in world.dispatch()]
    assert order == [one.batch_id for one in (hurried, hurried, soon, soon)]


def test_nothing_is_late_by_the_catalogs_word_alone(make_world):
    world = make_world(a_lane(slots=4, engine=ENGINE, jobs_per_second=1 / 8, shard_jobs_max=1))  # no job ended yet
    hurried = world.take_in(some_lines(2, "hurried"), window_seconds=10)
    world.clock.advance(8)
    soon = world.take_in(some_lines(2, "soon"), window_seconds=60)
    assert [shard.batch_id for shard in world.dispatch()] == [one.batch_id for one in (hurried, hurried, soon, soon)]


def test_preempted_as_often_as_the_policy_allows_a_job_is_kept_off_spot_and_another_of_its_group_is_not(make_world):
    world = make_world(SPOT, STEADY)
    world.place_by(Policy(preemptions_max=1))
    world.take_in(some_lines(1))
    (preempted,) = world.claimed()
    world.record(world.ran(preempted, a_preemption()), world.returned(preempted))
    world.take_in(some_lines(1, "b"))
    kept_off, fresh = sorted(world.dispatch(), key=lambda one: one.lane, reverse=True)
    assert (kept_off.lane, fresh.lane) == ("steady", "spot")
    assert kept_off.group_id == fresh.group_id
    assert kept_off.reason == "the only lane allowed, kept off spot after 1 preemptions"
    assert fresh.reason == "the cheapest of 2 allowed lanes"


def test_what_is_kept_off_spot_does_not_ride_along_with_what_is_not(make_world):
    world = make_world(SPOT, STEADY)
    world.place_by(Policy(preemptions_max=1))
    world.take_in(some_lines(4))
    (shard,) = world.claimed()
    world.record(world.ran(shard, *map(a_preemption, (2, 3))), world.returned(shard))
    sent = {one.lane: [(span.preemptions, span.jobs_count) for span in one.spans] for one in world.dispatch()}
    assert sent == {"spot": [(0, 2)], "steady": [(1, 2)]}


def test_where_only_spot_is_allowed_a_preempted_job_goes_there_again(make_world):
    world = make_world(SPOT, STEADY)
    world.place_by(Policy(preemptions_max=1))
    world.take_in(some_lines(1), constraints=Constraints(lanes=("spot",)))
    (preempted,) = world.claimed()
    world.record(world.ran(preempted, a_preemption()), world.returned(preempted))
    assert [one.lane for one in world.dispatch()] == ["spot"]


@pytest.mark.parametrize(("window_seconds", "lane"), [(45, "steady"), (3_600, "spot")])
def test_preempted_once_a_job_avoids_spot_if_another_time_would_make_it_late(make_world, window_seconds, lane):
    world = make_world(SPOT, STEADY)
    world.take_in(some_lines(1), window_seconds=window_seconds)
    (preempted,) = world.claimed()
    assert preempted.lane == "spot"
    world.record(world.ran(preempted, a_preemption()), world.returned(preempted))
    assert [one.lane for one in world.dispatch()] == [lane]


def test_the_planner_wants_instances_for_what_is_kept_off_spot(make_world):
    spot = a_lane("spot", supply=Supply.ELASTIC, quota=4, shard_jobs_max=10, jobs_per_second=1.0)
    steady = a_lane(
        "steady",
        supply=Supply.ELASTIC,
        quota=4,
        market=Market.ON_DEMAND,
        jobs_per_second=1.0,
        price=a_price(9_000_000_000),
    )
    world = make_world(spot, steady)
    world.place_by(Policy(preemptions_max=1))
    world.take_in(some_lines(100), window_seconds=600)
    world.dispatch()
    wanted = {name: one.desired for name, one in world.read(plans.lane_plans).items()}
    assert wanted == {"spot": 1, "steady": 0}
    sent = world.all_shards().values()
    for shard in sent:
        world.claim(shard)
        world.record(world.ran(shard, *map(a_preemption, range(shard.jobs_count))), world.returned(shard))
    assert 0 < sum(shard.jobs_count for shard in sent) < 100
    world.clock.advance(2)
    world.planner.step()
    wanted = {name: one.desired for name, one in world.read(plans.lane_plans).items()}
    assert wanted == {"spot": 1, "steady": 1}


def test_each_batch_spends_its_own_budget_and_one_without_is_not_held_up(make_world):
    world = make_world(a_lane(slots=4, shard_jobs_max=10))
    small = world.take_in(some_lines(20, "s"), max_cost_nano_usd=5 * COST)
    large = world.take_in(some_lines(20, "l"), max_cost_nano_usd=12 * COST)
    free = world.take_in(some_lines(20, "f"))
    sent: Counter[bytes | None] = Counter()
    for shard in world.dispatch():
        sent[shard.batch_id] += shard.jobs_count
    assert [sent[one.batch_id] for one in (small, large, free)] == [5, 12, 20]


@pytest.mark.parametrize(("standby", "desired"), [(0.0, 2), (2.0, 4)])
def test_capacity_stands_by_for_urgent_work_that_is_expected(make_world, standby, desired):
    """A job a second, to be done within a minute, and an instance does one a second."""
    lane = a_lane(
        supply=Supply.ELASTIC, market=Market.ON_DEMAND, quota=9, jobs_per_second=1.0, start_billed_seconds=120.0
    )
    world = make_world(lane)
    world.place_by(Policy(standby=standby))
    now = world.clock() // 60_000_000
    urgent, calm = ArrivalTerms(MODEL, "{}", 60), ArrivalTerms(MODEL, "{}", 86_400)
    for minute in range(now - 120, now):
        world.database.write(lambda one, at=minute: keep_arrivals(one, at, {urgent: 60, calm: 60}))
    world.planner.step()
    assert world.read(plans.lane_plans)["lane-a"].desired == desired
