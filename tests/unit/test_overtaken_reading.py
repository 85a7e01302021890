"""A piece of a batch that is in hand when the batch is cancelled, or read by another, is not taken in."""

from __future__ import annotations

import io
import threading
from contextlib import suppress

import pytest

from broker.database import batches
from broker.database.tables import batch, batch_refusal, job
from broker.domain.job import BatchStatus
from broker.intake import batch_lines
from broker.intake.batch_files import BatchFiles
from broker.stages.assembler import Assembler
from tests.unit.builders import MODEL, World, a_job_ran, some_lines


class Pausing(io.BytesIO):
    """A source at whose first piece something else happens."""

    def __init__(self, content: bytes, meanwhile) -> None:
        super().__init__(content)
        self._meanwhile = meanwhile

    def readline(self, size: int | None = -1, /) -> bytes:
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile:
            meanwhile()
        return super().readline(size)


def _cancel(world: World, batch_id: bytes) -> None:
    world.database.write(lambda connection: batches.request_cancel(connection, "t", batch_id, world.clock()))


def _statuses(world: World) -> dict[bytes, tuple[str, bool]]:
    return {row.batch_id: (row.status, row.finished_us is not None) for row in world.rows(batch)}


def test_nothing_comes_in_once_a_batch_is_cancelled_and_has_ended(world):
    content = some_lines(50)
    record, other = world.create(content), world.take_in(content)

    def cancel_and_end() -> None:
        _cancel(world, record.batch_id)
        assert [one.batch_id for one in Assembler(world.database, world.clock).step()] == [record.batch_id]

    assert list(world.intake.read_batch(record, Pausing(content, cancel_and_end)))[-1].read_us is not None
    assert _statuses(world) == {
        record.batch_id: (BatchStatus.CANCELLED, True),
        other.batch_id: (BatchStatus.RUNNING, False),
    }
    assert {row.batch_id for row in world.rows(job)} == {other.batch_id}
    assert world.waiting_jobs() == 50


@pytest.mark.parametrize("pieces", [2, 50])
def test_two_that_read_the_same_batch_take_each_line_in_once(world, monkeypatch, pieces):
    monkeypatch.setattr(batch_lines, "_CHUNK_LINES", pieces)
    content = some_lines(10)
    record = world.create(content)
    other = BatchFiles(world.database, {MODEL}, world.clock, world.wakeups, world.lanes)
    reading = other.read_batch(record, io.BytesIO(content))
    source = Pausing(content, lambda: next(reading))
    *_, last = world.intake.read_batch(record, source)
    assert (last.accepted_jobs, last.refused_lines, last.read_lines, last.read_bytes) == (10, 0, 10, len(content))
    with suppress(StopIteration):
        next(reading)
    assert sorted(row.custom_id for row in world.rows(job)) == sorted(f"a{n}" for n in range(10))
    assert (world.count(batch_refusal), world.waiting_jobs()) == (0, 10)


def test_two_that_read_at_once_take_each_line_in_once(world, monkeypatch):
    monkeypatch.setattr(batch_lines, "_CHUNK_LINES", 3)
    content = some_lines(40)
    records = [world.create(content) for _ in range(2)]
    together = threading.Barrier(2)

    def read() -> None:
        intake = BatchFiles(world.database, {MODEL}, world.clock, world.wakeups, world.lanes)
        together.wait()
        for record in records:
            list(intake.read_batch(record, io.BytesIO(content)))

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for record in records:
        now = world.batch(record.batch_id)
        assert (now.accepted_jobs, now.refused_lines, now.read_bytes) == (40, 0, len(content))
    assert (world.count(job), world.count(batch_refusal), world.waiting_jobs()) == (80, 0, 80)


def test_a_batch_that_has_ended_is_not_opened_again_by_a_second_assembler(world):
    ended, running = world.take_in(some_lines(1)), world.take_in(some_lines(2))
    for shard in world.claimed():
        if shard.batch_id == ended.batch_id:
            world.record(world.ran(shard, a_job_ran(0)))
    first, second = Assembler(world.database, world.clock), Assembler(world.database, world.clock)
    stale = world.batch(ended.batch_id)
    assert [one.batch_id for one in first.step()] == [ended.batch_id]
    before = _statuses(world)
    assert before[running.batch_id] == (BatchStatus.RUNNING, False)
    assert not second._finish(stale)
    assert _statuses(world) == before
