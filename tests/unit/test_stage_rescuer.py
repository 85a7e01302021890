from __future__ import annotations

import pytest

from broker.database.tables import result
from broker.domain.errors import ErrorCode
from broker.domain.shard import ShardState
from broker.ledger.tables import attempt, job_outcome
from broker.stages.rescuer import LATE_SECONDS, Rescuer
from tests.unit.builders import LEASE_SECONDS, SECOND_US, World, a_failure, a_job_ran, a_lane, some_lines


def _restarted(world):
    """The same database under a new process."""
    parts = {"database": world.database, "lanes": world.lanes, "clock": world.clock, "wakeups": world.wakeups}
    return Rescuer(lease_seconds=LEASE_SECONDS, **parts)


def _says(world):
    return [(span.jobs_count, span.failures, span.crashes, span.alone) for span in world.waiting()]


def test_what_nobody_claimed_goes_back_as_it_was(world):
    world.take_in(some_lines(3))
    before = world.waiting()
    (shard,) = world.dispatch()
    seconds = (shard.claim_by_us - world.clock()) / SECOND_US
    assert world.fall_silent(seconds - 5) == 0
    assert world.fall_silent(10) == 1
    assert world.waiting() == before
    assert (world.count(attempt), world.shard(shard).state) == (0, ShardState.TAKEN_BACK)
    world.run_all()
    assert world.verified().faults == []


def test_a_renewed_lease_is_left_alone(world):
    world.take_in(some_lines(1))
    (shard,) = world.claimed()
    for _ in range(5):
        assert world.fall_silent(10) == 0
        assert world.renew(shard, [0]).granted


def test_after_a_first_silence_nothing_is_suspect_and_after_a_second_only_what_was_running(world):
    world.take_in(some_lines(5))
    (shard,) = world.claimed()
    world.record(world.ran(shard, a_job_ran(4)))
    world.renew(shard, [1, 2, 4])
    assert world.fall_silent() == 1
    assert _says(world) == [(1, 0, 0, False), (2, 0, 0, False), (1, 0, 0, False)]
    (shard,) = world.claimed()
    world.renew(shard, [1, 2])
    assert world.fall_silent() == 1
    assert _says(world) == [(1, 0, 0, False), (2, 0, 0, True), (1, 0, 0, False)]
    assert all(record.jobs_count == 1 or not record.spans[0].alone for record in world.dispatch())


def test_without_any_renewal_all_that_is_missing_twice_is_suspect_and_runs_alone(world):
    record = world.take_in(some_lines(3))
    for _ in range(2):
        world.claimed()
        world.fall_silent()
    assert _says(world) == [(3, 0, 0, True)]
    assert [shard.jobs_count for shard in world.claimed()] == [1, 1, 1]  # one will have the engine, two wait
    world.fall_silent()
    world.run_all()
    assert (world.counts(record.batch_id).succeeded, world.counts(record.batch_id).ended) == (3, 3)


def test_three_crashes_alone_end_a_job_as_poisoned_and_nobody_else(world):
    record = world.take_in(some_lines(2))
    for _ in range(2):
        world.claimed()
        world.fall_silent()
    for crashes in range(3):
        mine = {shard.job_id_at(0): shard for shard in world.claimed()}
        poison = min(mine)
        assert mine[poison].spans[0].crashes == crashes
        for job_id, shard in mine.items():
            if job_id != poison:
                world.record(world.ran(shard, a_job_ran()))
        assert world.fall_silent() == 1
    assert world.waiting() == []
    counts = world.counts(record.batch_id)
    assert (counts.succeeded, counts.failed, counts.ended) == (1, 1, 2)
    (ended,) = [row for row in world.rows(job_outcome) if row.outcome == "failed"]
    assert ended.error_code == ErrorCode.POISONED
    assert world.verified().faults == []


def test_a_late_success_wins_once_and_the_second_is_waste(world):
    record = world.take_in(some_lines(2))
    (slow,) = world.claimed()
    world.fall_silent()
    (again,) = world.claimed()
    world.record(world.ran(slow, a_job_ran(0)))  # late, and first
    world.record(*(world.ran(again, a_job_ran(index, body=b'"second"')) for index in range(2)))
    world.record(world.ran(slow, a_job_ran(1)))  # late, and second
    counts = world.counts(record.batch_id)
    assert (counts.succeeded, counts.ended, counts.attempts) == (2, 2, 4)
    assert (counts.cost_nano_usd, counts.wasted_nano_usd) == (4_000, 2_000)
    assert {row.job_id: row.body for row in world.rows(result)} == {
        slow.job_id_at(0): b'{"n":0}',
        slow.job_id_at(1): b'"second"',
    }
    assert sorted(row.outcome for row in world.rows(attempt)) == ["succeeded"] * 2 + ["superseded"] * 2
    assert world.shard(slow).state is ShardState.TAKEN_BACK
    assert world.verified().faults == []


def test_a_job_that_a_late_success_ended_is_not_dispatched_again(world):
    record = world.take_in(some_lines(3))
    (slow,) = world.claimed()
    world.renew(slow, [0])  # 1 and 2 are done, and their events under way
    world.fall_silent()
    world.record(world.ran(slow, a_job_ran(1), a_job_ran(2)))
    world.run_all()
    counts = world.counts(record.batch_id)
    assert (counts.succeeded, counts.ended, counts.attempts, counts.wasted_nano_usd) == (3, 3, 3, 0)


def test_a_late_success_after_the_second_run_began_wins_too(world):
    record = world.take_in(some_lines(3))
    (slow,) = world.claimed()
    world.renew(slow, [])
    world.fall_silent()
    (again,) = world.claimed()
    world.record(world.ran(slow, *map(a_job_ran, range(3))))
    world.record(world.ran(again, *map(a_job_ran, range(3))))
    counts = world.counts(record.batch_id)
    assert (counts.succeeded, counts.attempts, counts.wasted_nano_usd) == (3, 6, 3_000)
    assert world.verified().faults == []


def test_a_late_failure_sends_nothing_on_a_second_time(world):
    world.take_in(some_lines(1))
    (slow,) = world.claimed()
    world.fall_silent()
    before = world.waiting()
    world.record(world.ran(slow, a_failure()))
    assert world.waiting() == before


def test_what_never_came_is_written_off_as_lost_with_a_bound_on_its_cost(world):
    record = world.take_in(some_lines(3))
    (slow,) = world.claimed()
    world.record(world.ran(slow, a_job_ran(0)))
    world.fall_silent()
    world.run_all()
    assert {row.outcome for row in world.rows(attempt)} == {"succeeded"}
    world.fall_silent(LATE_SECONDS + 10)
    lost = [row for row in world.rows(attempt) if row.outcome == "lost"]
    assert [row.shard_index for row in lost] == [1, 2]
    assert {(row.cost_basis, row.cost_nano_usd, row.decisive) for row in lost} == {("unknown", 0, False)}
    assert sum(row.cost_upper_nano_usd for row in lost) == LEASE_SECONDS * SECOND_US  # a nano-dollar a microsecond
    assert world.shard(slow).closed_us is not None
    world.record(world.ran(slow, a_job_ran(1)))  # too late
    assert (world.counts(record.batch_id).succeeded, world.counts(record.batch_id).attempts) == (3, 5)
    assert world.verified().faults == []


def test_after_a_gap_of_our_own_it_rests_two_thirds_of_a_lease(world):
    world.take_in(some_lines(1))
    world.claimed()
    assert world.rescuer.step() == 0
    world.clock.advance(600)
    assert world.rescuer.step() == 0
    assert world.fall_silent(5) == 0
    assert world.fall_silent(5) == 1


@pytest.mark.parametrize("state", ["waiting", "sent", "running", "partly recorded", "taken back"])
def test_a_restart_loses_nothing_and_counts_nothing_against_the_jobs(world, state):
    record = world.take_in(some_lines(4))
    recorded = 0
    if state != "waiting":
        (shard,) = world.dispatch()
    if state in {"running", "partly recorded", "taken back"}:
        world.claim(shard)
        world.renew(shard, [0, 1, 2])
    if state == "partly recorded":
        world.record(world.ran(shard, a_job_ran(3)))
        recorded = 1
    if state == "taken back":
        world.fall_silent()
    _restarted(world).recover()
    assert world.waiting_jobs() == 4 - recorded
    if state != "taken back":
        assert {(span.failures, span.crashes, span.alone) for span in world.waiting()} == {(0, 0, False)}
    assert _restarted(world).recover() == 0
    world.run_all()
    counts = world.counts(record.batch_id)
    assert (counts.succeeded, counts.ended) == (4, 4)
    assert world.verified().faults == []
    assert all(one.closed_us for one in world.all_shards().values())


def test_many_shards_are_recovered_at_once(make_world):
    world = make_world(a_lane(shard_jobs_max=1, slots=50))
    record = world.take_in(some_lines(80))
    while world.claimed():
        pass
    assert _restarted(world).recover() == 80
    assert world.waiting_jobs() == 80
    assert isinstance(world, World)
    assert world.counts(record.batch_id).ended == 0
