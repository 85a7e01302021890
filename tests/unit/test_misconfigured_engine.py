"""An engine that answers 401, 403, 404 or 405: jobs go elsewhere, and where nowhere else helps they end in the end."""

from __future__ import annotations

from broker.domain.errors import ErrorCode
from broker.ledger.tables import job_outcome
from broker.rules.settling import MISCONFIGURED_MAX
from tests.unit.builders import a_failure, a_job_ran, a_lane, some_lines

CODE = ErrorCode.ENGINE_MISCONFIGURED


def _tries(world, tries):
    """The first job meets such an engine so often; how many seconds passed."""
    began = world.clock()
    for _ in range(tries):
        while not (shards := world.claimed()):
            world.clock.advance(0.5)
        for shard in shards:
            ran = [a_job_ran(index) for index in range(1, shard.jobs_count)]
            world.record(world.ran(shard, a_failure(0, CODE, status_code=404), *ran))
        world.health.success("lane-a")  # its other jobs go well
    return (world.clock() - began) / 1_000_000


def test_the_tenth_try_ends_the_job_and_not_before_two_minutes(world):
    record = world.take_in(some_lines(3))
    assert _tries(world, MISCONFIGURED_MAX - 1) >= 60
    assert world.counts(record.batch_id).ended == 2
    assert world.waiting()[0].failures == 0
    waited = _tries(world, 1)
    assert waited >= 29
    counts = world.counts(record.batch_id)
    assert (counts.succeeded, counts.failed, counts.attempts) == (2, 1, MISCONFIGURED_MAX + 2)
    (ended,) = [row for row in world.rows(job_outcome) if row.outcome == "failed"]
    assert ended.error_code == CODE
    assert world.waiting() == []
    assert world.verified().faults == []


def test_a_lane_that_serves_it_ends_it_well_whatever_came_before(world):
    record = world.take_in(some_lines(1))
    _tries(world, MISCONFIGURED_MAX - 1)
    world.clock.advance(30)
    world.run_all()
    assert world.counts(record.batch_id).succeeded == 1


def test_other_faults_in_between_count_for_themselves(make_world):
    world = make_world(a_lane(shard_jobs_max=1))
    record = world.take_in(some_lines(1))
    for code in [CODE, ErrorCode.ENGINE_FAILED] * 3:
        while not (shards := world.claimed()):
            world.clock.advance(0.5)
        world.record(world.ran(shards[0], a_failure(0, code)))
        world.health.success("lane-a")
    assert [span.failures for span in world.waiting()] == [3]
    world.clock.advance(30)
    world.run_all()
    assert world.counts(record.batch_id).succeeded == 1
