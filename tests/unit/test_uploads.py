"""Uploads that can't be read: only one that is gone from its folder ends, all others wait."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import structlog

from broker.database.tables import batch, job
from broker.domain.job import BatchStatus
from broker.intake.uploads import UPLOAD_PREFIX, Spool, UploadReader
from tests.unit.builders import World, a_line, some_lines

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0


class Stand:
    """Two uploads in one folder, and a reader whose time stands still until a test moves it."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.folder, self.now = world, folder, 0.0
        self.first, self.second = self.upload(some_lines(3, "a")), self.upload(some_lines(2, "b"))
        self.reader = self.new_reader()

    def upload(self, content: bytes) -> Path:
        spool = Spool(self.folder, 10_000, None)
        spool.add(content)
        spool.finish()
        self.world.create(content, source_name=UPLOAD_PREFIX + spool.path.name)
        self.world.clock.advance(1)
        return spool.path

    def new_reader(self) -> UploadReader:
        return UploadReader(
            self.world.database, self.folder, self.world.intake.read_batch, lambda: False, lambda: self.now
        )

    def steps(self) -> int:
        """How many uploads were read until there was none."""
        count = 0
        while self.reader.step():
            count += 1
        return count

    def batches(self) -> list[tuple[str, int, int]]:
        rows = sorted(self.world.rows(batch), key=lambda row: row.created_us)
        return [(row.status, row.accepted_jobs, row.refused_lines) for row in rows]


@pytest.fixture
def stand(world, tmp_path):
    return Stand(world, tmp_path / "uploads")


WAITING, ALL_THREE, BOTH = (BatchStatus.READING, 0, 0), (BatchStatus.RUNNING, 3, 0), (BatchStatus.RUNNING, 2, 0)


def test_while_their_folder_is_not_mounted_uploads_wait_and_then_come_in_whole(stand):
    away = stand.folder.rename(stand.folder.with_name("away"))
    assert stand.steps() == 0
    assert stand.batches() == [WAITING, WAITING]
    stand.folder.mkdir()  # as the mount's own empty folder
    stand.now += LONGEST_PAUSE
    stand.reader.sweep(0)
    assert stand.steps() == 0
    stand.folder.rmdir()
    away.rename(stand.folder)
    stand.now += LONGEST_PAUSE
    assert stand.steps() == 2
    assert stand.batches() == [ALL_THREE, BOTH]


def test_another_folder_in_its_place_is_not_taken_for_it(stand, tmp_path):
    away = stand.folder.rename(stand.folder.with_name("away"))
    third = Spool(stand.folder, 10_000, None)  # a door whose mount is missing, too, took one in there
    third.add(a_line() + b"\n")
    third.finish()
    assert stand.steps() == 0
    assert stand.batches() == [WAITING, WAITING]
    for path in away.iterdir():
        path.rename(stand.folder / path.name)
    stand.now += LONGEST_PAUSE
    assert stand.steps() == 2
    assert stand.batches() == [ALL_THREE, BOTH]


def test_one_that_can_not_be_read_now_holds_up_none_after_it(stand):
    kept = stand.first.read_bytes()
    stand.first.unlink()
    stand.first.mkdir()  # EISDIR, as good as any
    assert stand.steps() == 1
    assert stand.batches() == [WAITING, BOTH]
    stand.first.rmdir()
    stand.first.write_bytes(kept)
    assert stand.steps() == 0  # it rests
    stand.now += FIRST_PAUSE
    assert stand.steps() == 1
    assert stand.batches() == [ALL_THREE, BOTH]


def test_one_that_is_shorter_than_it_came_in_is_not_taken_for_whole(stand):
    kept = stand.first.read_bytes()
    stand.first.write_bytes(kept[:-30])
    assert stand.steps() == 1
    assert stand.batches() == [WAITING, BOTH]
    stand.first.write_bytes(kept)
    stand.now += FIRST_PAUSE
    assert stand.steps() == 1
    assert sorted(row.custom_id for row in stand.world.rows(job)) == ["a0", "a1", "a2", "b0", "b1"]


def test_it_is_said_once_and_tried_again_ever_more_seldom(stand):
    tries: list[float] = []

    def read_batch(record, source):
        tries.append(stand.now)
        raise OSError(errno.EIO, "Input/output error")

    stand.reader = UploadReader(stand.world.database, stand.folder, read_batch, lambda: False, lambda: stand.now)
    with structlog.testing.capture_logs() as said:
        for second in range(200):
            stand.now = float(second)
            assert stand.steps() == 0
    assert tries[::2] == tries[1::2] == [0, 1, 3, 7, 15, 31, 63, 123, 183]  # each of the two
    reasons = [line["reason"].partition(":")[0] for line in said if line["event"] == "upload_not_read"]
    assert reasons == ["Input/output error"] * 2
    assert stand.batches() == [WAITING, WAITING]


def test_one_that_is_gone_alone_ends_as_a_refused_line(stand):
    stand.first.unlink()
    assert stand.steps() == 2
    assert stand.batches() == [(BatchStatus.RUNNING, 0, 1), BOTH]
    assert stand.steps() == 0


def test_an_upload_of_a_build_that_named_no_folder_is_given_up_once_it_is_gone(stand):
    content = some_lines(4, "c")
    (stand.folder / "0123.jsonl").write_bytes(content)
    for name in ("0123.jsonl", "4567.jsonl"):
        stand.world.create(content, source_name=UPLOAD_PREFIX + name)
    assert stand.steps() == 4
    assert sorted(stand.batches()[2:]) == [(BatchStatus.RUNNING, 0, 1), (BatchStatus.RUNNING, 4, 0)]
