"""What the keeper removes of plans and decisions, and what it must leave."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.database import plans, pruning
from broker.database.planning_tables import assignment, plan
from broker.database.tables import outbox, ready, shard, work_group
from broker.domain.ids import format_id
from broker.domain.job import Constraints
from broker.ledger.explaining import explain
from broker.rules.decisions import Candidate, GroupPlan
from broker.stages.keeper import Keeper
from tests.unit.builders import DAY_SECONDS, GENERATE_ONLY, SECOND_US, a_lane, some_lines

DAY_US = DAY_SECONDS * SECOND_US
WINDOWS_S = (3_600, 8 * DAY_SECONDS)
LANES = (a_lane("one"), a_lane("two"))


def decide(world, group_ids, number) -> None:
    """A plan like the planner's, with a decision for each of these groups."""
    decision = GroupPlan((Candidate(("one", "two")[number % 2], 1, "v"), Candidate("one", 1, "v")), ())

    def work(connection):
        generation = plans.current_plan(connection)[0] + 1
        plans.write_plan(connection, generation, dict.fromkeys(group_ids, decision), b"d" * 32, world.clock())

    world.database.write(work)


def left_by_rule(world, before_us):
    """The decisions and plans that must be left, worked out row by row."""
    made_us = {row.generation: row.created_us for row in world.rows(plan)}
    used = {row.assignment_id for row in world.rows(shard)}
    waiting = {row.group_id for row in world.rows(ready)}
    deadlines_us = {row.group_id: row.deadline_us for row in world.rows(work_group)}
    old = [row for row in world.rows(assignment) if made_us[row.generation] < before_us]
    newest_old = {row.group_id: row.generation for row in sorted(old, key=lambda row: row.generation)}
    gone = {
        row.assignment_id
        for row in old
        if row.assignment_id not in used
        and (
            row.generation < newest_old[row.group_id]
            or (deadlines_us[row.group_id] < before_us and row.group_id not in waiting)
        )
    }
    left = [row for row in world.rows(assignment) if row.assignment_id not in gone]
    needed = {row.generation for row in left} | {max(made_us, default=0)}
    kept = {one for one, us in made_us.items() if us >= before_us or one in needed}
    return {row.assignment_id for row in left}, kept


STEPS = st.lists(
    st.tuples(st.sampled_from(["decide", "decide", "dispatch", "arrive", "days"]), st.integers(0, 7)), max_size=30
)


@settings(max_examples=8, phases=GENERATE_ONLY)
@given(STEPS, st.sampled_from([1, 3, 2_000]))
def test_what_may_still_be_asked_for_is_left_and_the_rest_goes(make_world, steps, at_once):
    world = make_world(*LANES)
    for number, (what, which) in enumerate(steps):
        if what == "arrive":
            world.take_in(some_lines(3, f"b{number}-"), window_seconds=WINDOWS_S[which % 2])
        elif what == "decide":
            groups = sorted(row.group_id for row in world.rows(work_group))
            decide(world, [one for place, one in enumerate(groups) if which >> (place % 3) & 1], which)
        elif what == "dispatch":
            world.dispatch()
        else:
            world.clock.advance(DAY_SECONDS * (1 + which) / 4)
    decisions, generations = left_by_rule(world, world.clock() - DAY_US)
    prune(world, at_once)
    assert {row.assignment_id for row in world.rows(assignment)} == decisions
    assert {row.generation for row in world.rows(plan)} == generations
    assert {row.assignment_id for row in world.rows(shard)} <= decisions
    assert world.read(plans.load_waiting).keys() <= {row.group_id for row in world.rows(ready)}


def prune(world, at_once) -> None:
    """In portions of so many decisions."""
    before, pruning._ASSIGNMENTS_MAX = pruning._ASSIGNMENTS_MAX, at_once
    try:
        Keeper(world.database, world.clock).step()
    finally:
        pruning._ASSIGNMENTS_MAX = before


def test_a_job_is_explained_by_its_plan_however_much_was_pruned(make_world):
    world = make_world(*LANES)
    world.take_in(some_lines(2))
    (job_id,) = {row.first_job_id for row in world.waiting()}
    world.run_all()
    before = world.read(explain, "t", job_id)
    assert before.attempts[0].candidates
    groups = [row.group_id for row in world.rows(work_group)]
    for number in range(50):
        decide(world, groups, number)
    world.clock.advance(3 * DAY_SECONDS)
    Keeper(world.database, world.clock).step()
    assert (world.count(assignment), world.count(plan)) == (1, 2)  # the one that was used; the newest plan
    assert world.read(explain, "t", job_id) == before, format_id("job", job_id)
    world.take_in(some_lines(2, "again"))
    assert world.dispatch()


def test_a_keeper_that_is_to_stop_does_no_more(make_world):
    world = make_world(*LANES)
    world.take_in(some_lines(1))
    decide(world, [row.group_id for row in world.rows(work_group)], 0)
    decide(world, [], 1)
    world.clock.advance(3 * DAY_SECONDS)
    Keeper(world.database, world.clock, lambda: True).step()
    assert world.count(plan) == 2
    Keeper(world.database, world.clock).step()
    assert world.count(plan) == 2  # the first is of a group that waits, past its deadline


def test_what_no_relay_will_ever_publish_leaves_the_outbox(make_world, monkeypatch):
    monkeypatch.setattr(pruning, "_OUTBOX_MAX", 2)
    world = make_world(a_lane("left", slots=8, shard_jobs_max=1), a_lane("stays", slots=8, shard_jobs_max=1))
    for name in ("left", "stays"):
        world.take_in(some_lines(5, name), constraints=Constraints(lanes=(name,)))
    sent = world.dispatch()
    assert len(sent) == 10
    claimed = [shard for shard in sent if shard.lane == "stays"][:2]
    assert all(world.claim(shard).granted for shard in claimed)
    keeper = Keeper(world.database, world.clock)
    keeper.step()
    assert {row.shard_id for row in world.rows(outbox)} == {one.shard_id for one in sent} - {
        one.shard_id for one in claimed
    }  # what may still be published stays, whoever knows its lane
    world.fall_silent(max(shard.claim_by_us - world.clock() for shard in sent) / SECOND_US + 20)
    keeper.step()
    assert world.count(outbox) == 0
    assert world.waiting_jobs() == 10
