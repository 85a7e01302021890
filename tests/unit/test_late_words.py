"""What arrives late, twice, or from the wrong side: it is counted once, and holds nothing up."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.database import batches
from broker.database.shards import ShardRecord
from broker.domain.job import BatchStatus
from broker.intake.uploads import UPLOAD_PREFIX, Spool, UploadReader
from broker.ledger.tables import attempt, job_outcome
from broker.stages.rescuer import LATE_SECONDS
from tests.unit.builders import SECOND_US, World, a_failure, a_job_ran, a_lane, a_line, some_lines


def _renewed(world: World, shards: list[ShardRecord], seconds: float, running: list[int]) -> None:
    """Time passes while these are at work."""
    for _ in range(round(seconds / 5)):
        for shard in shards:
            world.renew(shard, running)
        world.clock.advance(5)
        world.rescuer.step()


@pytest.mark.parametrize("dispatched_again", [False, True])
def test_a_failure_told_after_its_shard_was_handed_back_is_only_an_attempt(world, dispatched_again):
    world.take_in(some_lines(1))
    (shard,) = world.claimed()
    world.record(world.returned(shard))
    if dispatched_again:
        world.claimed()
    before = world.waiting()
    world.record(world.ran(shard, a_failure(0)))
    assert world.waiting() == before
    assert [row.outcome for row in world.rows(attempt)] == ["failed"]


def test_a_write_off_ends_no_job_that_goes_on_elsewhere(world):
    world.take_in(some_lines(2))
    for _ in range(3):
        world.claimed()
        world.fall_silent()
    for shard in world.claimed():
        world.renew(shard, [])  # both have crashed twice alone, and now wait for a place at the engine
    world.fall_silent()
    again = world.claimed()
    _renewed(world, again, LATE_SECONDS + 60, [0])
    assert world.rows(job_outcome) == []
    for shard in again:
        world.record(world.ran(shard, a_job_ran(0)))
    assert [row.outcome for row in world.rows(job_outcome)] == ["succeeded", "succeeded"]
    assert world.verified().faults == []


def test_what_a_worker_says_of_a_shard_that_is_not_its_own_is_ignored(world):
    world.take_in(some_lines(1))
    (shard,) = world.dispatch()
    world.record(world.ran(shard, a_job_ran(0)))
    assert world.rows(attempt) == []


def test_an_upload_is_found_wherever_its_folder_is_named_from(make_world, tmp_path):
    world = make_world(a_lane())
    _uploaded(world, tmp_path / "uploads", a_line() + b"\n")
    (tmp_path / "uploads").rename(tmp_path / "moved")
    reader = UploadReader(world.database, tmp_path / "moved", world.intake.read_batch, lambda: False)
    reader.sweep(0)
    assert reader.step()
    assert [span.jobs_count for span in world.waiting()] == [1]


def test_an_upload_that_is_gone_ends_as_a_refused_line_and_holds_up_none_after_it(make_world, tmp_path):
    world = make_world(a_lane())
    _uploaded(world, tmp_path, a_line("gone") + b"\n")
    for path in tmp_path.glob("*.jsonl"):
        path.unlink()
    reader = _uploaded(world, tmp_path, a_line("there") + b"\n")
    assert (reader.step(), reader.step(), reader.step()) == (True, True, False)
    found = world.read(batches.unfinished)
    assert [(one.accepted_jobs, one.refused_lines, one.status) for one in found] == [
        (0, 1, BatchStatus.RUNNING),
        (1, 0, BatchStatus.RUNNING),
    ]


def test_a_batch_that_is_cancelled_while_it_is_read_is_read_no_further(world):
    content = some_lines(3)
    record = world.create(content)
    world.database.write(
        lambda connection: batches.request_cancel(
            connection, record.tenant_id, record.batch_id, world.clock() + SECOND_US
        )
    )
    assert world.read(batches.get, record.batch_id).read_us is not None


def _uploaded(world: World, folder: Path, content: bytes) -> UploadReader:
    spool = Spool(folder, 10_000, None)
    spool.add(content)
    spool.finish()
    world.create(content, source_name=UPLOAD_PREFIX + spool.path.name)
    return UploadReader(world.database, folder, world.intake.read_batch, lambda: False)
