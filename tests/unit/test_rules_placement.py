"""Placement's promises: constraints are never broken, the same inputs decide the same, fair turns, earliest first."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.domain.lane import Market
from broker.rules.placement.lanes import LaneFacts, LaneNow
from broker.rules.placement.planning import Memory, Situation, make_plan
from broker.rules.placement.policy import Policy
from broker.rules.placement.table import LaneTable
from broker.rules.placement.turns import Turns
from broker.rules.placement.work import Demands, Group, Stream, Terms
from broker.simulation.room import deal_step

PROVIDERS = ("google-tpu", "azure-gpu", "oracle-gpu")
REGIONS = ("eu-west", "eu-north", "us-east", "us-west", "asia")
PRECISIONS = ("bf16", "fp8", "fp4")
MODELS = ("small", "large")


def a_lane(name="lane", **changes):
    facts = {
        "provider": "oracle-gpu",
        "region": "eu-west",
        "precision": "bf16",
        "models": ("large",),
        "price_version": "1",
        "hour_nano_usd": 100 * 10**9,
        "jobs_per_second": {"chat": 10.0},
        "quota": 4,
        "start_unbilled_s": 120.0,
        "start_billed_s": 180.0,
    }
    return LaneFacts(name=name, **facts | changes)


def a_group(name="group", **changes):
    facts = {"tenant": "t", "terms": Terms("large", "chat"), "start_by_s": 3_600.0, "jobs": 1_000.0}
    return Group(group_id=name, **facts | changes)


def a_stream(rate, within_s=40.0, kind="chat"):
    return Stream(
        terms=Terms("large", kind),
        start_within_s=within_s,
        recent_rate=rate,
        expected_rate=rate,
        sudden_rate=rate,
        day_rate=rate,
    )


def a_plan(lanes, groups=(), streams=(), states=None, memory=None, now_s=0.0, policy=None, done=None):
    situation = Situation(
        now_s=now_s,
        states=tuple(states or [LaneNow()] * len(lanes)),
        groups=groups,
        streams=streams,
        done=done or {},
    )
    return make_plan(LaneTable(lanes), situation, memory or Memory(), policy or Policy())


def deal_all(lanes, groups, free_s, policy=None, now_s=0.0):
    by_tenant = {}
    for group in sorted(groups, key=lambda one: one.start_by_s):
        by_tenant.setdefault(group.tenant, []).append(group)
    chosen = policy or Policy()
    return deal_step(LaneTable(lanes), now_s, Turns(chosen), by_tenant, free_s, {}, chosen)


# ------------------------------------------------------------------------------------------------ hard constraints


def random_lanes(chance):
    return tuple(
        a_lane(
            f"lane-{n}",
            provider=chance.choice(PROVIDERS),
            region=chance.choice(REGIONS),
            precision=chance.choice(PRECISIONS),
            market=chance.choice(list(Market)),
            models=tuple(chance.sample(MODELS, chance.randrange(1, 3))),
            hour_nano_usd=chance.randrange(1, 200) * 10**9,
            jobs_per_second={kind: chance.uniform(1, 50) for kind in ("chat", "batch") if chance.random() < 0.9},
            preemptions_per_hour=chance.choice([0.0, 0.2]),
        )
        for n in range(12)
    )


def random_demands(chance):
    def some(names, part=0.3):
        return tuple(chance.sample(names, chance.randrange(1, len(names)))) if chance.random() < part else ()

    return Demands(
        providers=some(PROVIDERS),
        denied_providers=some(PROVIDERS, 0.1),
        regions=some(REGIONS),
        denied_regions=some(REGIONS, 0.1),
        markets=some(("spot", "on-demand"), 0.1),
        precisions=some(PRECISIONS, 0.2),
        interruptible=chance.random() < 0.8,
        job_cost_max_nano_usd=chance.choice([None, None, 2_000_000]),
    )


def allowed(lane, group, preemptions_max):
    """Written apart from the filters, from what the terms say."""
    demands, terms = group.terms.demands, group.terms
    speed = lane.jobs_per_second.get(terms.kind)
    cost_max = demands.job_cost_max_nano_usd
    interruptible = demands.interruptible and group.preemptions < preemptions_max
    return (
        speed is not None
        and terms.model in lane.models
        and (not demands.providers or lane.provider in demands.providers)
        and lane.provider not in demands.denied_providers
        and (not demands.regions or lane.region in demands.regions)
        and lane.region not in demands.denied_regions
        and (not demands.markets or lane.market in demands.markets)
        and (not demands.precisions or lane.precision in demands.precisions)
        and (interruptible or lane.market is Market.ON_DEMAND)
        and (cost_max is None or round(lane.hour_nano_usd / 3_600 / speed) <= cost_max)
    )


def allowed_names(lanes, group, preemptions_max):
    """Who was preempted too often may use interruptible lanes only where it may use no other."""
    anyhow = {lane.name for lane in lanes if allowed(lane, group, 1 << 31)}
    return {lane.name for lane in lanes if allowed(lane, group, preemptions_max)} or anyhow


@pytest.mark.parametrize("seed", range(100))
def test_no_job_of_10_000_is_ever_placed_outside_its_constraints(seed):
    chance, policy = Random(seed), Policy()
    lanes = random_lanes(chance)
    by_name = {lane.name: lane for lane in lanes}
    groups = [
        a_group(
            f"{n}",
            tenant=f"t{n % 5}",
            terms=Terms(chance.choice(MODELS), chance.choice(("chat", "batch")), random_demands(chance)),
            start_by_s=chance.uniform(0, 90_000),
            jobs=1.0,
            preemptions=chance.choice([0, 0, 1, 5]),
        )
        for n in range(100)
    ]
    # Lanes fail, rest, and come back halfway.
    states = [
        LaneNow(chance.randrange(0, 5), chance.randrange(0, 2), chance.choice([1.0, 1.0, 0.5, 0.0])) for _ in lanes
    ]
    plan, _ = a_plan(lanes, groups, [a_stream(5.0)], states)
    groups_by_id = {group.group_id: group for group in groups}
    for decided in plan.decided:
        group = groups_by_id[decided.group_id]
        expected = allowed_names(lanes, group, policy.preemptions_max)
        assert {candidate.lane for candidate in decided.plan.candidates} == expected
        assert {one.lane for one in decided.plan.removed} == by_name.keys() - expected
    free_s = [10.0 * now.ready * (now.trust > 0) for now in states]
    for orders in (plan.orders, {}):  # without orders: the jobs are newer than the plan
        waiting = {f"t{n}": iter(sorted(groups[n::5], key=lambda one: one.start_by_s)) for n in range(5)}
        for dealt in deal_step(LaneTable(lanes), 0.0, Turns(policy), waiting, free_s, orders, policy):
            assert lanes[dealt.index].name in allowed_names(lanes, dealt.group, policy.preemptions_max)
            assert free_s[dealt.index] > 0


def test_each_lane_is_removed_once_with_its_filter():
    lanes = (a_lane("a", region="us-east"), a_lane("b", models=("small",)), a_lane("c"))
    demands = Demands(regions=("eu-west",))
    plan, _ = a_plan(lanes, [a_group(terms=Terms("large", "chat", demands))])
    removed = {one.lane: one.filter for one in plan.decided[0].plan.removed}
    assert removed == {"b": "model: does not run large", "a": "regions: not among eu-west"}


def test_what_was_preempted_too_often_stays_off_spot():
    lanes = (a_lane("spot", market=Market.SPOT, hour_nano_usd=1), a_lane("steady"))
    often, seldom = a_group("often", preemptions=3), a_group("seldom", preemptions=2)
    plan, _ = a_plan(lanes, [often, seldom])
    names = {one.group_id: [candidate.lane for candidate in one.plan.candidates] for one in plan.decided}
    assert names["often"] == ["steady"]
    assert set(names["seldom"]) == {"spot", "steady"}


# ---------------------------------------------------------------------------------------------------- determinism


@given(seed=st.integers(0, 10**6), data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_same_situation_gives_the_same_plan_in_whatever_order_it_is_told(seed, data):
    chance = Random(seed)
    lanes = random_lanes(chance)
    groups = [
        a_group(f"{n}", terms=Terms("large", "chat", random_demands(chance)), start_by_s=chance.uniform(60, 90_000))
        for n in range(20)
    ]
    shuffled = data.draw(st.permutations(groups))
    first, remembered = a_plan(lanes, groups, [a_stream(4.0)])
    second, _ = a_plan(lanes, shuffled, [a_stream(4.0)])
    assert msgspec.json.encode(first.decided) == msgspec.json.encode(second.decided)
    assert (first.desired, first.starts, first.orders) == (second.desired, second.starts, second.orders)
    again, _ = a_plan(lanes, groups, [a_stream(4.0)], memory=remembered, now_s=60.0)
    assert again.generation == first.generation + 1


def test_an_assignment_carries_its_reasons():
    lanes = (a_lane("dear", hour_nano_usd=200 * 10**9), a_lane("cheap", price_version="7"))
    plan, _ = a_plan(lanes, [a_group()], states=[LaneNow(), LaneNow(ready=1)])
    (one,) = plan.decided
    cheap, dear = one.plan.candidates
    assert cheap.lane == "cheap"
    assert cheap.price_version == "7"
    assert cheap.busy_job_cost_nano_usd == cheap.expected_job_cost_nano_usd == round(100 * 10**9 / 3_600 / 10)
    assert (cheap.ready_in_s, dear.ready_in_s) == (0, 300)
    assert one.cost_nano_usd == 1_000 * cheap.busy_job_cost_nano_usd
    assert one.finish_s == pytest.approx(100.0)  # 1,000 jobs at 10 a second
    assert plan.generation == 1


# -------------------------------------------------------------------------------------------------------- dealing


def test_the_earliest_deadline_goes_first():
    late, soon = a_group("late", start_by_s=9_000, jobs=100), a_group("soon", start_by_s=8_000, jobs=60)
    dealt = deal_all((a_lane(),), [late, soon], [10.0])
    assert [(one.group.group_id, one.jobs) for one in dealt] == [("soon", 60), ("late", 40)]


def test_tenants_share_by_weight_within_a_band():
    groups = [a_group("a", tenant="a", jobs=10_000), a_group("b", tenant="b", jobs=10_000, start_by_s=3_000)]
    dealt = deal_all((a_lane(),), groups, [400.0], Policy(tenant_weights={"a": 3.0}))
    jobs = {name: sum(one.jobs for one in dealt if one.group.tenant == name) for name in "ab"}
    assert jobs["a"] == pytest.approx(3 * jobs["b"], rel=0.02)


def test_what_must_start_now_goes_before_others_turns():
    groups = [a_group("bulk", tenant="a", jobs=10_000, start_by_s=80_000), a_group("now", tenant="b", start_by_s=30)]
    dealt = deal_all((a_lane(),), groups, [100.0])
    assert {one.group.group_id for one in dealt} == {"now"}


def test_what_is_late_goes_after_all_that_can_be_in_time_and_before_what_has_time():
    groups = [
        a_group("late", start_by_s=99.0, jobs=10.0),
        a_group("now", start_by_s=100.0, jobs=10.0),
        a_group("soon", start_by_s=219.0, jobs=10.0),
        a_group("later", start_by_s=400.0, jobs=10.0),
    ]
    dealt = deal_all((a_lane(),), groups, [100.0], now_s=100.0)
    assert [one.group.group_id for one in dealt] == ["now", "soon", "late", "later"]


def test_a_moments_shortage_makes_nothing_late_that_comes_after_it():
    """A hundred jobs a second come, due in 20 s, and half can be done for a minute, then all: 3,000 too few."""
    waiting, missed = {}, 0.0
    for second in range(300):
        waiting[second + 20.0] = 100.0
        groups = [a_group(f"{due:.0f}", start_by_s=due, jobs=jobs) for due, jobs in waiting.items()]
        for one in deal_all((a_lane(),), groups, [5.0 if second < 60 else 10.0], now_s=float(second)):
            waiting[one.group.start_by_s] -= one.jobs
            missed += one.jobs if one.group.start_by_s < second else 0.0
        waiting = {due: jobs for due, jobs in waiting.items() if jobs > 1e-6}
    missed += sum(jobs for due, jobs in waiting.items() if due < 300)
    assert missed <= 60 * 50  # earliest first alone would miss 26,000


def test_a_kind_goes_where_it_is_comparatively_fast():
    lanes = (
        a_lane("a", jobs_per_second={"chat": 10.0, "batch": 10.0}),
        a_lane("b", jobs_per_second={"chat": 10.0, "batch": 5.0}),
    )
    chat, batch = a_group("chat"), a_group("batch", terms=Terms("large", "batch"))
    plan, _ = a_plan(lanes, [chat, batch], states=[LaneNow(ready=1)] * 2)
    assert plan.orders[chat.terms] == (1, 0)
    assert plan.orders[batch.terms] == (0, 1)


def test_an_urgent_job_preempted_before_avoids_spot_while_it_can():
    lanes = (a_lane("spot", market=Market.SPOT, hour_nano_usd=1), a_lane("steady"))
    (dealt,) = deal_all(lanes, [a_group(preemptions=1, start_by_s=20, jobs=1)], [10.0, 10.0])
    assert lanes[dealt.index].name == "steady"
    (dealt,) = deal_all(lanes, [a_group(preemptions=1, start_by_s=20, jobs=1)], [10.0, 0.0])
    assert lanes[dealt.index].name == "spot"
