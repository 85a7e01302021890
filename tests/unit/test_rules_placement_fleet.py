"""How many instances the planner wants: merit order, whole ones, hysteresis, shares, health, supplies."""

from __future__ import annotations

import pytest

from broker.domain.lane import Market
from broker.rules.placement.arrivals import ArrivalLog
from broker.rules.placement.lanes import LaneNow, Supply
from broker.rules.placement.policy import Policy
from broker.rules.placement.work import Demands, Terms
from tests.unit.test_rules_placement import a_group, a_lane, a_plan, a_stream


def test_urgent_work_is_covered_before_it_comes_by_the_cheapest_lanes():
    lanes = (a_lane("dear", hour_nano_usd=300 * 10**9), a_lane("cheap"))
    plan, _ = a_plan(lanes, streams=[a_stream(25.0)])
    assert plan.desired == (0, 3)  # 25 a second and 15 % beside, 10 each
    assert plan.starts == (0, 3)


def test_beyond_the_quota_the_next_lane_helps():
    lanes = (a_lane("dear", hour_nano_usd=300 * 10**9), a_lane("cheap", quota=2))
    plan, _ = a_plan(lanes, streams=[a_stream(25.0)])
    assert plan.desired == (1, 2)


def test_soft_work_that_fills_no_instance_waits():
    lanes = (a_lane(),)
    few, many = a_group(jobs=50_000.0, start_by_s=80_000.0), a_group(jobs=400_000.0, start_by_s=80_000.0)
    assert a_plan(lanes, [few])[0].desired == (0,)
    assert a_plan(lanes, [many], [a_stream(5.0, within_s=85_800.0)])[0].desired == (1,)


def test_soft_work_starts_no_lane_beyond_the_days_demand():
    lanes = (a_lane("cheap", quota=1), a_lane("dear", hour_nano_usd=500 * 10**9))
    bulk = a_group(jobs=1_000_000.0, start_by_s=80_000.0)
    assert a_plan(lanes, [bulk], [a_stream(8.0, within_s=85_800.0)])[0].desired == (1, 0)
    assert a_plan(lanes, [bulk], [a_stream(20.0, within_s=85_800.0)])[0].desired[1] > 0


def test_work_due_soon_may_start_anything():
    lanes = (a_lane("cheap", quota=1), a_lane("dear", hour_nano_usd=500 * 10**9))
    plan, _ = a_plan(lanes, [a_group(jobs=90_000.0, start_by_s=3_600.0)], [a_stream(8.0, within_s=85_800.0)])
    assert plan.desired[0] == 1
    assert plan.desired[1] >= 2  # 90,000 in 3,165 s, less start-up and the next look


def test_an_instance_stops_only_after_it_was_not_wanted_for_the_hold_time():
    lanes, memory = (a_lane(),), None
    states = [LaneNow(ready=3)]
    _, memory = a_plan(lanes, streams=[a_stream(25.0)], states=states)
    for minute in range(1, 5):
        plan, memory = a_plan(lanes, states=states, memory=memory, now_s=60.0 * minute)
        assert plan.stops == (0,)
    plan, _ = a_plan(lanes, states=states, memory=memory, now_s=300.0)
    assert plan.stops == (3,)


def test_nothing_ready_stops_before_its_replacement_is_ready():
    lanes = (a_lane("dear", hour_nano_usd=300 * 10**9), a_lane("cheap"))
    starting, ready = [LaneNow(ready=3), LaneNow(starting=3)], [LaneNow(ready=3), LaneNow(ready=3)]
    assert a_plan(lanes, streams=[a_stream(25.0)], states=starting)[0].stops == (0, 0)
    assert a_plan(lanes, streams=[a_stream(25.0)], states=ready)[0].stops == (3, 0)


def test_a_provider_at_its_share_gives_way_to_steady_others():
    lanes = (a_lane("cheap", quota=9), a_lane("dear", provider="azure-gpu", hour_nano_usd=150 * 10**9, quota=9))
    bulk = [a_group(jobs=2_500_000.0, start_by_s=80_000.0)]
    streams = [a_stream(60.0, within_s=85_800.0)]
    assert a_plan(lanes, bulk, streams)[0].desired[1] == 0
    limited = Policy(shares={"oracle-gpu": 0.5})
    assert a_plan(lanes, bulk, streams, policy=limited)[0].desired[1] == 3
    overdone = {"oracle-gpu": 90_000.0, "azure-gpu": 30_000.0}
    assert a_plan(lanes, bulk, streams, policy=limited, done=overdone)[0].desired[1] > 3


def test_fixed_instances_are_used_first_and_never_stopped():
    lanes = (a_lane("elastic", hour_nano_usd=1), a_lane("own", supply=Supply.FIXED, quota=2))
    states = [LaneNow(), LaneNow(ready=2)]
    assert a_plan(lanes, streams=[a_stream(15.0)], states=states)[0].desired == (0, 2)
    assert a_plan(lanes, states=states)[0].stops == (0, 0)
    assert a_plan(lanes, streams=[a_stream(25.0)], states=states)[0].desired == (1, 2)


def test_per_token_slots_are_bought_where_they_are_cheaper():
    def slots(job_nano_usd):
        managed = a_lane(
            "managed",
            supply=Supply.PER_TOKEN,
            hour_nano_usd=0,
            job_nano_usd={"chat": job_nano_usd},
            quota=40,
            jobs_per_second={"chat": 1.0},
            start_unbilled_s=0.0,
            start_billed_s=0.0,
        )
        return a_plan((a_lane(), managed), streams=[a_stream(20.0)])[0].desired

    assert slots(1_000_000) == (0, 23)  # an instance's job costs 2,777,778 nano-USD
    assert slots(9_000_000) == (2, 3)  # for the rest three slots cost less than a third instance
    assert slots(20_000_000) == (3, 0)


def test_work_that_only_one_lane_may_do_gets_that_lane():
    lanes = (a_lane("cheap"), a_lane("here", region="asia", hour_nano_usd=900 * 10**9))
    there = Terms("large", "chat", Demands(regions=("asia",)))
    plan, _ = a_plan(lanes, [a_group(terms=there, jobs=20_000.0, start_by_s=3_600.0), a_group("other")])
    assert plan.desired[1] == 1


def test_a_lane_at_rest_gets_nothing_and_comes_back_by_degrees():
    lanes = (a_lane("cheap"), a_lane("dear", hour_nano_usd=300 * 10**9))
    for level, wanted in ((0.0, (0, 3)), (0.25, (1, 2)), (1.0, (3, 0))):
        states = [LaneNow(trust=level), LaneNow()]
        assert a_plan(lanes, streams=[a_stream(25.0)], states=states)[0].desired == wanted


@pytest.mark.parametrize("today", [1.0, 0.5])
def test_yesterdays_rise_is_expected_again_at_todays_level(today):
    log = ArrivalLog()
    for minute in range(1_440 + 120):
        busy = 4.0 if 120 <= minute % 1_440 < 240 else 1.0
        log.add(60.0 * minute, 60.0 * busy * (today if minute >= 1_440 else 1.0))
    now_s = 60.0 * (1_440 + 119)
    assert log.recent_rate(now_s) == pytest.approx(today)
    assert log.expected_rate(now_s, 600.0) == pytest.approx(4.0 * today)
    assert log.sudden_rate(now_s, 600.0) == pytest.approx(min(today + 3.0, 4.0))
    assert log.day_rate(now_s) == pytest.approx((120 * 4 + 1_320) / 1_440, rel=0.06)


def test_spot_is_rated_with_what_preemptions_waste():
    calm = a_lane("calm", hour_nano_usd=101 * 10**9)
    restless = a_lane("restless", market=Market.SPOT, preemptions_per_hour=1.0)
    assert a_plan((restless, calm), streams=[a_stream(8.0)])[0].desired == (0, 1)
