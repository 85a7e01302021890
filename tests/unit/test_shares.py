"""Limits on providers' shares: what is counted, who is passed over, and what gives way to a deadline."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.catalog.lanes import load_lanes
from broker.catalog.policy import policy_of
from broker.catalog.shares import load_shares
from broker.database import work_counts
from broker.database.tables import shard
from broker.domain.errors import ErrorCode, UsageError
from broker.domain.job import Constraints
from broker.domain.lane import Provider, Supply
from broker.ledger.tables import attempt
from broker.ledger.work_done import WorkDone
from broker.rules.decisions import Candidate, GroupPlan
from broker.rules.placement.lanes import LaneNow
from broker.rules.placement.shares import WorkLog, done_by_provider, over_share, share_limits
from broker.rules.placement.table import LaneTable
from broker.rules.planning import BeyondShare, pick_lane
from broker.stages.planner import Planner
from tests.flow.program import lane as lane_text
from tests.unit.builders import a_job_ran, a_lane, a_price, some_lines
from tests.unit.test_rules_placement import a_group
from tests.unit.test_rules_placement import a_lane as lane_facts

CHEAP = a_lane("cheap", provider=Provider.GOOGLE_TPU, jobs_per_second=10.0, shard_jobs_max=10)
DEAR = a_lane(
    "dear", provider=Provider.AZURE_GPU, jobs_per_second=10.0, shard_jobs_max=10, price=a_price(7_200_000_000)
)
SHARES = {"google-tpu": 0.6}
DAY_S = 86_400


@pytest.fixture
def limited(make_world):
    """A world whose planner limits Google's share."""

    def make(*lanes, shares=SHARES):
        world = make_world(*(lanes or (CHEAP, DEAR)))
        restart_planner(world, shares)
        return world

    return make


def restart_planner(world, shares=SHARES):
    slots = {str(lane.name): lane.slots for lane in world.lanes}
    world.planner = Planner(
        world.database, world.lanes, world.clock, world.wakeups, world.health, lambda _: slots, policy_of(shares)
    )


def work_a_second(world, jobs, number, **terms) -> None:
    """So many jobs come, and all shards that are out are done within a second."""
    world.take_in(some_lines(jobs, f"{number}-"), window_seconds=3_600, **terms)
    for written in world.dispatch():
        assert world.claim(written).granted
        world.record(world.ran(written, *map(a_job_ran, range(written.jobs_count))))
    world.clock.advance(1.0)


def go_beyond(world) -> None:
    """Google has had all of the work so far."""
    for second in range(3):
        work_a_second(world, 10, second, constraints=Constraints(lanes=("cheap",)))
    assert world.dispatch() == []


def jobs_by_lane(world):
    return Counter(row.lane for row in world.rows(attempt))


def test_steady_work_is_shared_as_it_may_be(limited):
    world = limited()
    for second in range(30):
        work_a_second(world, 10, second)
    found = jobs_by_lane(world)
    assert found["cheap"] + found["dear"] == 300
    assert found["cheap"] == pytest.approx(180, abs=10)
    reasons = {row.reason for row in world.rows(shard) if row.lane == "dear"}
    assert all("share: cheap passed over, as google-tpu had " in reason for reason in reasons)
    assert all("of the last six hours' work and may have 60%" in reason for reason in reasons)


def test_a_new_planner_goes_on_where_the_last_one_was(limited):
    world = limited()
    for second in range(40):
        work_a_second(world, 10, second)
        if second % 10 == 9:
            restart_planner(world)
    assert jobs_by_lane(world)["cheap"] == pytest.approx(240, abs=10)
    assert sum(jobs for *_, jobs in world.read(work_counts.kept_work, 0)) > 0


def test_what_was_recorded_without_a_planner_is_counted_once(world):
    done = WorkDone()
    look(world, done)
    world.take_in(some_lines(40))
    world.run_all()
    for _ in range(30):
        world.clock.advance(1.0)
        look(world, done)
    assert done.week(world.clock())["lane-a", "m"] == 40
    world.take_in(some_lines(30, "b"))
    world.run_all()
    other, third = WorkDone(), WorkDone()
    for _ in range(30):
        world.clock.advance(1.0)
        look(world, other)
    assert other.lately(world.clock())["lane-a", "m"] == 70
    for _ in range(3):  # it notices that another has counted, and begins anew
        world.clock.advance(20.0)
        look(world, done)
        look(world, third)
    assert done.week(world.clock()) == third.week(world.clock()) == {("lane-a", "m"): 70}
    assert sum(jobs for *_, jobs in world.read(work_counts.kept_work, 0)) == 70
    world.clock.advance(7 * 3_600.0)
    assert done.lately(world.clock())["lane-a", "m"] == 0
    assert done.week(world.clock())["lane-a", "m"] == 70


def look(world, done) -> None:
    now_us = world.clock()
    done.note(world.database.read(lambda one: done.read(one, now_us)))
    done.keep(world.database, now_us)


def test_work_that_can_wait_waits_for_a_lane_within_its_share(limited):
    world = limited()
    go_beyond(world)
    world.take_in(some_lines(200, "bulk"), window_seconds=DAY_S)
    assert {one.lane for one in world.dispatch()} == {"dear"}
    world.clock.advance(1.0)
    assert world.dispatch() == []  # its slots are taken, and those of the limited provider are not for this


def test_a_share_gives_way_to_a_deadline(limited):
    world = limited()
    go_beyond(world)
    world.take_in(some_lines(200, "urgent"), window_seconds=60)
    written = world.dispatch()
    assert {one.lane for one in written} == {"cheap", "dear"}
    (reason,) = {one.reason for one in written if one.lane == "cheap"}
    assert reason.startswith("beyond its provider's share, as it must not wait for another: google-tpu had ")


def test_work_that_only_the_limited_provider_may_do_does_not_wait(limited):
    world = limited()
    go_beyond(world)
    world.take_in(some_lines(10, "here"), window_seconds=DAY_S, constraints=Constraints(lanes=("cheap",)))
    (written,) = world.dispatch()
    assert written.lane == "cheap"
    world.health.fault("dear", ErrorCode.ENGINE_UNREACHABLE)
    world.take_in(some_lines(10, "bulk"), window_seconds=DAY_S)
    assert {one.lane for one in world.dispatch()} == {"cheap"}  # the other lane does nothing now


def test_limits_of_before_are_forgotten_when_there_are_none(limited):
    world = limited()
    go_beyond(world)
    restart_planner(world, {})
    work_a_second(world, 10, "after")
    assert world.read(work_counts.share_limits) == {}


# ---------------------------------------------------------------------------------------------------------- the rules


def test_a_log_forgets_what_is_older_than_its_window():
    log = WorkLog(3_600.0)
    for minute in range(180):
        log.add(60.0 * minute, "a", "chat", 1.0)
    assert log.jobs(60.0 * 179)["a", "chat"] == pytest.approx(65, abs=5)
    assert log.jobs(60.0 * 400)["a", "chat"] == 0


FACTS = tuple(
    lane_facts(name, provider=provider, supply=Supply.FIXED)
    for name, provider in (("g", "google-tpu"), ("a", "azure-gpu"), ("o", "oracle-gpu"))
)
STATES = (LaneNow(2), LaneNow(1), LaneNow(0))


def limits_of(groups, done, shares=SHARES, states=STATES):
    return share_limits(LaneTable(FACTS), 0.0, states, groups, done, policy_of(shares))


def test_the_share_gives_way_once_the_others_would_take_too_long():
    over = {"google-tpu": 70.0, "azure-gpu": 30.0}
    # The others do 10 jobs a second, and may take 0.6 of the time until two minutes before the start is due.
    within, beyond = int(10 * 0.6 * 3_480), int(10 * 0.6 * 3_480) + 60
    assert limits_of([a_group(jobs=float(within))], over)[0].start_by_s == 120.0
    assert limits_of([a_group(jobs=float(beyond))], over)[0].start_by_s == 3_600.0
    later = a_group("later", start_by_s=DAY_S, jobs=10.0)
    assert limits_of([a_group(jobs=float(beyond)), later], over)[0].start_by_s == 3_600.0
    assert limits_of([], {"google-tpu": 60.0, "azure-gpu": 40.0}) == ()
    assert limits_of([a_group(jobs=1e6)], over, states=(LaneNow(2), LaneNow(0), LaneNow(0)))[0].start_by_s == 120.0


DONE = st.dictionaries(st.sampled_from(["google-tpu", "azure-gpu", "oracle-gpu"]), st.floats(0, 1e9), min_size=1)


@given(DONE, st.floats(0.34, 1.0))
def test_never_are_all_providers_beyond_their_shares(done, share):
    every = {"google-tpu": 0.0, "azure-gpu": 0.0, "oracle-gpu": 0.0} | done
    over = over_share(every, policy_of({"*": share}))
    assert len(over) < 3
    assert all(part > share for part in over.values())


def test_work_is_counted_in_units_so_that_kinds_of_different_size_add_up():
    lanes = (lane_facts("g", provider="google-tpu", jobs_per_second={"small": 100.0, "large": 1.0}),)
    found = done_by_provider(LaneTable(lanes), {("g", "small"): 100.0, ("g", "large"): 2.0, ("gone", "small"): 5.0})
    assert found == {"google-tpu": 3.0}


NAMES = ("a", "b", "c", "d")
LANE_SETS = st.sets(st.sampled_from(NAMES))


@given(LANE_SETS, LANE_SETS, st.booleans())
def test_a_lane_within_its_share_always_comes_first(beyond, free, can_wait):
    plan = GroupPlan(tuple(Candidate(name, 1, "v") for name in NAMES), ())
    over = {name: BeyondShare("google-tpu", 0.6, 0.7, 0) for name in beyond}
    picked = pick_lane(plan, dict.fromkeys(free, 1), over, can_wait=can_wait)
    within = sorted(free - beyond)
    last = [] if can_wait else sorted(free & beyond)
    expected = [*within, *last]
    assert (picked[0].lane if picked else None) == (expected[0] if expected else None)
    if picked and beyond:
        assert "google-tpu had 70.0% of the last six hours' work and may have 60%" in picked[1]


# -------------------------------------------------------------------------------------------------------- the catalog


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ("azure = 0.5", "shares: 'azure' is no provider; it must be '*' or one of google-tpu, azure-gpu, oracle-gpu"),
        ('"*" = 0.0', "shares.* is 0; it must be above 0 and at most 1"),
        ("azure-gpu = 60", "shares.azure-gpu is 60; it must be above 0 and at most 1"),
        ('"*" = 0.4', "shares: those of azure-gpu, google-tpu come to 0.8; together they must reach 1"),
    ],
)
def test_limits_that_cannot_be_are_refused_in_one_sentence(tmp_path, shares, said):
    file = catalog(tmp_path, shares)
    with pytest.raises(UsageError) as refused:
        load_shares(file, load_lanes(file))
    assert str(refused.value) == f"{file}, {said}"


def test_limits_are_read_beside_the_lanes(tmp_path):
    file = catalog(tmp_path, '"*" = 0.6\nazure-gpu = 0.5')
    policy = policy_of(load_shares(file, load_lanes(file)))
    assert [policy.share_of(name) for name in Provider] == [0.6, 0.5, 0.6]
    assert load_shares("demo", load_lanes("demo")) == {}


def catalog(folder, shares):
    file = folder / "lanes.toml"
    lanes = [lane_text("one", "google-tpu"), lane_text("two", "azure-gpu")]
    file.write_text("\n".join([f"[shares]\n{shares}", *lanes]))
    return file
