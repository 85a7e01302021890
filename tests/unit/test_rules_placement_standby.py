"""Capacity that stands by for urgent work: the quantile that costs least, and what the planner makes of it."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.catalog.lanes import load_lanes
from broker.catalog.policy import load_policy, policy_of
from broker.domain.errors import UsageError
from broker.domain.lane import Market
from broker.rules.placement.arrivals import ArrivalLog
from broker.rules.placement.expecting import stream_of
from broker.rules.placement.lanes import LaneNow
from broker.rules.placement.policy import Policy
from broker.rules.placement.standby import standby_rate, worthwhile_part
from broker.rules.placement.table import LaneTable
from broker.rules.placement.work import Terms
from tests.flow.program import lane as lane_text
from tests.unit.test_rules_placement import a_group, a_lane, a_plan, a_stream

MARGIN = Policy().urgent_margin
AHEAD_S = 600.0
TERMS = Terms("large", "chat")
LANES = (
    a_lane("spot", market=Market.SPOT, hour_nano_usd=10**9),
    a_lane("steady"),
    a_lane("dear", hour_nano_usd=2 * 10**11),
)
STEADY_JOB = round(100 * 10**9 / 3_600 / 10)


def logged(minutes):
    """A log that was told so many jobs in each minute, and the moment after the last."""
    log = ArrivalLog()
    for minute, jobs in enumerate(minutes):
        log.add(60.0 * minute, jobs)
    return log, 60.0 * len(minutes)


def steps(jumps, day=1_440):
    """A day of 600 jobs a minute; at each of these minutes they are tripled, for three minutes."""
    minutes = [600.0] * day
    for jump in jumps:
        minutes[jump : jump + 3] = [1_800.0] * 3
    return minutes


def test_steady_arrivals_need_nothing_by():
    log, now_s = logged([600.0] * 1_440)
    assert log.shortfall(now_s, AHEAD_S, MARGIN, 0.999) == 0.0


def test_what_stands_by_covers_jumps_that_come_often_enough_and_no_others():
    often, now_s = logged(steps(range(100, 1_400, 100)))  # 39 of 1,428 minutes, 2.7 %
    seldom, _ = logged(steps([700]))  # 0.2 %
    for part, expected in ((0.96, 0.0), (0.98, 30.0 - MARGIN * 10.0)):
        assert often.shortfall(now_s, AHEAD_S, MARGIN, part) == pytest.approx(expected)
    assert seldom.shortfall(now_s, AHEAD_S, MARGIN, 0.99) == 0.0
    assert seldom.shortfall(now_s, AHEAD_S, MARGIN, 0.999) == pytest.approx(30.0 - MARGIN * 10.0)


def test_without_a_history_nothing_stands_by():
    assert ArrivalLog().shortfall(0.0, AHEAD_S, MARGIN, 0.99) == 0.0
    assert ArrivalLog().day_rate(0.0) == 0.0


@given(st.integers(0, 10**6), st.floats(0.5, 0.999), st.floats(1.0, 500.0))
def test_no_other_amount_would_have_cost_less_on_the_day_that_was_seen(seed, part, other):
    """The newsvendor's promise: idle at 1 a job and minute, missed at 1 / (1 - part), no other amount beats it."""
    chance = Random(seed)
    minutes = [chance.uniform(300, 900) * (3 if chance.random() < 0.03 else 1) for _ in range(400)]
    log, now_s = logged(minutes)
    ahead = int(AHEAD_S // 60)
    short = [
        max(0.0, minutes[at] - MARGIN * (minutes[at - ahead - 1] + minutes[at - ahead - 2]) / 2) / 60
        for at in range(ahead + 2, len(minutes))
    ]

    def cost(by):
        return by * len(short) + sum(max(0.0, one - by) for one in short) / (1 - part)

    chosen = log.shortfall(now_s, AHEAD_S, MARGIN, part)
    # One minute of the day is the step of the quantile.
    assert cost(chosen) <= cost(other) + max(short) * 1.0001 / (1 - part)


def test_the_part_follows_from_what_a_missed_job_costs():
    table = LaneTable(LANES)
    assert worthwhile_part(table, TERMS, None) == 0.99
    # The cheapest lane that isn't taken away counts: spot can go when it is needed.
    assert worthwhile_part(table, TERMS, 10 * STEADY_JOB) == pytest.approx(0.9)
    assert worthwhile_part(table, TERMS, STEADY_JOB // 2) == 0.0
    assert worthwhile_part(LaneTable(LANES[:1]), TERMS, 10**9) == 0.0


def test_an_operator_may_set_it_instead_in_daily_means():
    log, now_s = logged([600.0] * 1_440)
    table = LaneTable(LANES)
    for standby, expected in ((0.0, 0.0), (1.5, 15.0)):
        assert standby_rate(table, TERMS, log, now_s, AHEAD_S, Policy(standby=standby)) == pytest.approx(expected)


def test_only_what_cannot_wait_for_a_start_has_capacity_standing_by():
    log, now_s = logged([600.0] * 1_440)
    streams = [
        stream_of(LaneTable(LANES), TERMS, within_s, log, now_s, AHEAD_S, Policy(standby=1.0))
        for within_s in (40.0, 3_540.0)
    ]
    assert [one.standby_rate for one in streams] == [pytest.approx(10.0), 0.0]


@pytest.mark.parametrize(("standby", "instances"), [(0.0, 2), (10.0, 3), (25.0, 4)])
def test_the_plan_holds_instances_for_it_though_nothing_else_would_fill_them(standby, instances):
    """Ten jobs a second and 15 % are two instances; what stands by comes on top."""
    stream = msgspec.structs.replace(a_stream(10.0), standby_rate=standby)
    plan, _ = a_plan([a_lane("only", quota=9)], streams=[stream])
    assert plan.desired == (instances,)


def test_other_work_that_fills_it_is_not_paid_twice():
    stream = msgspec.structs.replace(a_stream(10.0), standby_rate=20.0)
    soft = a_group(jobs=40.0 * 3_600, start_by_s=3_600.0 * 2 + 420)
    lanes = [a_lane("only", quota=20)]
    with_it, without = (a_plan(lanes, [soft], [one], [LaneNow(ready=8)])[0] for one in (stream, a_stream(10.0)))
    assert with_it.desired == without.desired


# ------------------------------------------------------------------------------------------------------- the catalog


def catalog(folder, text):
    file = folder / "lanes.toml"
    file.write_text(text + "\n" + lane_text("tpu", "google-tpu") + lane_text("azure", "azure-gpu"))
    return file


def test_the_policy_is_read_beside_the_lanes(tmp_path):
    file = catalog(
        tmp_path,
        '[shares]\n"*" = 0.6\n[tenant_weights]\nalpha = 3\nbeta = 0.5\n'
        '[placement]\npreemptions_max = 5\nstandby = 1\nmissed_job_usd = "0.01"\n',
    )
    policy = load_policy(file, load_lanes(file))
    assert policy == Policy(
        share_all=0.6,
        tenant_weights={"alpha": 3.0, "beta": 0.5},
        preemptions_max=5,
        standby=1.0,
        missed_job_nano_usd=10_000_000,
    )
    assert load_policy("demo", load_lanes("demo")) == policy_of() == Policy()
    assert load_policy(catalog(tmp_path, ""), load_lanes(catalog(tmp_path, ""))) == Policy()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tenant_weights]\nalpha = 0", "tenant_weights.alpha is 0; it must be a number from 0.01 to 100"),
        ('[tenant_weights]\nalpha = "3"', "tenant_weights.alpha is '3'; it must be a number from 0.01 to 100"),
        ("[tenant_weights]\nalpha = nan", "tenant_weights.alpha is nan; it must be a number from 0.01 to 100"),
        ("[placement]\npreemptions_max = 0", "placement.preemptions_max is 0; it must be from 1 to 100"),
        ("[placement]\nstandby = -1", "placement.standby is -1; it must be from 0 to 100"),
        (
            '[placement]\nmissed_job_usd = "0"',
            "placement.missed_job_usd is '0'; it must be an amount above 0, as a text",
        ),
        (
            '[placement]\nmissed_job_usd = "x"',
            "placement.missed_job_usd is 'x'; it must be an amount above 0, as a text",
        ),
        ("[placement]\nmissed = 1", "placement: Object contains unknown field `missed`"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(tmp_path, text, message):
    file = catalog(tmp_path, text)
    with pytest.raises(UsageError) as refused:
        load_policy(file, load_lanes(file))
    assert str(refused.value) == f"{file}, {message}"
