"""Closer and assembler: a batch's end, and its two files."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import update

from broker.database import batches
from broker.database.tables import batch, batch_count
from broker.domain.errors import BrokerError, ErrorCode
from broker.domain.job import BatchStatus
from broker.domain.outcome import Outcome
from broker.domain.usage import Usage
from broker.ledger.tables import attempt, job_outcome
from broker.stages.assembler import Assembler
from tests.unit.builders import a_failure, a_job_ran, a_line, some_lines

COST = 10_000
"""What one job is expected to cost on the lane of these tests, in nano-dollars."""


def _ends(world):
    return sorted((row.outcome, row.error_code) for row in world.rows(job_outcome))


def test_what_still_waits_at_the_deadline_has_expired(world):
    record = world.take_in(some_lines(5), window_seconds=100)
    world.clock.advance(99.999)
    assert world.closer.step() == 0
    world.clock.advance(0.001)
    assert world.closer.step() == 1
    assert _ends(world) == [(Outcome.EXPIRED, ErrorCode.BATCH_EXPIRED)] * 5
    assert (world.counts(record.batch_id).expired, world.counts(record.batch_id).ended) == (5, 5)
    assert (world.waiting(), world.count(attempt), world.closer.step()) == ([], 0, 0)
    assert world.verified().faults == []


def test_what_is_with_a_lane_at_the_deadline_is_the_workers_to_end(world):
    record = world.take_in(some_lines(2), window_seconds=100)
    (shard,) = world.claimed()
    world.clock.advance(200)
    assert world.closer.step() == 0
    world.record(world.ran(shard, a_job_ran(0), a_job_ran(1)))
    assert world.counts(record.batch_id).succeeded == 2


def test_a_job_that_a_late_success_ended_does_not_expire_as_well(world):
    record = world.take_in(some_lines(2), window_seconds=100)
    (slow,) = world.claimed()
    world.fall_silent()
    world.record(world.ran(slow, a_job_ran(0)))
    world.clock.advance(100)
    world.closer.step()
    counts = world.counts(record.batch_id)
    assert (counts.succeeded, counts.expired, counts.ended) == (1, 1, 2)
    assert world.verified().faults == []


def test_a_spent_budget_ends_what_waits_once_nothing_is_under_way(world):
    record = world.take_in(some_lines(5), max_cost_nano_usd=2 * COST)
    free = world.take_in(some_lines(1))
    mine = world.claimed()
    assert [shard.jobs_count for shard in mine] == [2, 1]
    assert world.closer.step() == 0  # the two under way may turn out cheaper
    world.record(world.ran(mine[0], *(a_job_ran(index, usage=Usage(accelerator_us=COST)) for index in range(2))))
    assert world.dispatch() == []
    assert world.closer.step() == 1
    counts = world.counts(record.batch_id)
    assert (counts.succeeded, counts.failed, counts.ended, counts.cost_nano_usd) == (2, 3, 5, 2 * COST)
    assert _ends(world)[:3] == [(Outcome.FAILED, ErrorCode.BUDGET_EXCEEDED)] * 3
    assert world.counts(free.batch_id).ended == 0


def test_a_cancelled_batch_ends_what_waits(world):
    record = world.take_in(some_lines(3))
    world.database.write(lambda connection: connection.execute(update(batch).values(cancel_requested_us=1)))
    assert world.closer.step() == 1
    assert world.counts(record.batch_id).cancelled == 3
    (done,) = Assembler(world.database, world.clock).step()
    assert world.batch(done.batch_id).status is BatchStatus.CANCELLED


def _files(record):
    return [
        [msgspec.json.decode(line) for line in Path(path).read_bytes().splitlines()]
        for path in (record.output_path, record.error_path)
    ]


def test_each_line_stands_once_in_one_file_in_the_order_of_the_input(world, monkeypatch):
    monkeypatch.setattr("broker.stages.output_files._LINES_PER_PAGE", 2)
    record = world.take_in(b"bad\n" + some_lines(3) + b"bad\n" + some_lines(4, "b") + b"bad\nbad")
    (shard,) = world.claimed()
    refused = a_failure(1, ErrorCode.ENGINE_REFUSED, status_code=400, body=b'{"error":{"message":"no"}}')
    ended = [a_job_ran(index) for index in (6, 0, 5, 2, 3, 4)]
    world.record(world.ran(shard, *ended[:3]))
    assembler = Assembler(world.database, world.clock)
    assert assembler.step() == []
    world.record(world.ran(shard, refused, *ended[3:]))
    assert [done.batch_id for done in assembler.step()] == [record.batch_id]
    output, errors = _files(record)
    assert [line["custom_id"] for line in output] == ["a0", "a2", "b0", "b1", "b2", "b3"]
    assert [line["response"]["body"]["n"] for line in output] == [0, 2, 3, 4, 5, 6]
    assert [(line["custom_id"], line["error"]["code"], line["error"].get("line")) for line in errors] == [
        (None, "invalid_line", 1),
        ("a1", "engine_refused", None),
        (None, "invalid_line", 5),
        (None, "invalid_line", 10),
        (None, "invalid_line", 11),
    ]
    assert errors[1]["response"] == {"status_code": 400, "request_id": "", "body": {"error": {"message": "no"}}}
    kept = world.batch(record.batch_id)
    assert (kept.status, kept.finished_us) == (BatchStatus.COMPLETED, world.clock())
    assert assembler.step() == []
    assert {path.name for path in world.folder.iterdir() if "jsonl" in path.name} == {"out.jsonl", "err.jsonl"}


def test_more_refused_lines_in_a_row_than_a_page_has_hide_no_job(world, monkeypatch):
    monkeypatch.setattr("broker.stages.output_files._LINES_PER_PAGE", 2)
    record = world.take_in(b"bad\n" * 3 + some_lines(1) + b"bad\n" * 7 + some_lines(1, "b") + b"bad\n" * 5)
    (shard,) = world.claimed()
    world.record(world.ran(shard, a_job_ran(0), a_job_ran(1)))
    assert Assembler(world.database, world.clock).step() != []
    output, errors = _files(record)
    assert [line["custom_id"] for line in output] == ["a0", "b0"]
    assert [line["error"]["line"] for line in errors] == [*range(1, 4), *range(5, 12), *range(13, 18)]


def test_a_batch_of_refusals_alone_is_finished_too(world):
    record = world.take_in(b"bad\nworse\n")
    Assembler(world.database, world.clock).step()
    output, errors = _files(record)
    assert (output, [line["error"]["line"] for line in errors]) == ([], [1, 2])


def test_files_that_can_not_be_written_are_said_so_and_written_later(world):
    blocked = world.folder / "blocked"
    blocked.write_text("a file where the folder should be")
    record = world.take_in(some_lines(1), output_path=str(blocked / "out.jsonl"), error_path=str(blocked / "err.jsonl"))
    world.run_all()
    assembler = Assembler(world.database, world.clock)
    with pytest.raises(BrokerError, match=r"can't write .*blocked.*results are kept"):
        assembler.step()
    assert world.batch(record.batch_id).finished_us is None
    blocked.unlink()
    assert len(assembler.step()) == 1
    assert [line["custom_id"] for line in _files(record)[0]] == ["a0"]


def test_a_failure_in_the_middle_leaves_no_half_file(world, monkeypatch):
    record = world.take_in(some_lines(3))
    world.run_all()
    assembler = Assembler(world.database, world.clock)
    written = []

    def break_after_one(line):
        written.append(line)
        if len(written) > 1:
            raise OSError(28, "No space left on device")
        return b"{}\n"

    with monkeypatch.context() as broken:
        broken.setattr("broker.stages.output_files.success_of", break_after_one)
        with pytest.raises(BrokerError, match="No space left"):
            assembler.step()
    assert [path.name for path in world.folder.iterdir() if "jsonl" in path.name] == []
    assembler.step()
    assert len(_files(record)[0]) == 3


def _content(record):
    return [Path(path).read_bytes() for path in (record.output_path, record.error_path)]


def _draft(path):
    return Path(path).with_name(f".{Path(path).name}.part")


def _written_so_far(record):
    """What another process sees of the drafts, by name of each line."""
    lines = [
        line for path in (record.output_path, record.error_path) for line in _draft(path).read_bytes().splitlines()
    ]
    return [msgspec.json.decode(line)["custom_id"] for line in lines]


@pytest.fixture
def ahead(monkeypatch):
    """Lines are written ahead as soon as two more have ended."""
    monkeypatch.setattr("broker.stages.assembler._AHEAD_LINES", 2)
    monkeypatch.setattr("broker.stages.output_files._LINES_PER_PAGE", 3)


@settings(max_examples=15)
@given(draws=st.data())
def test_what_is_written_ahead_is_what_would_be_written_at_the_end(make_world, ahead, draws):
    world = make_world()
    source = b"".join(
        draws.draw(st.sampled_from([b"bad\n", *[some_lines(1, f"n{place}-")] * 2])) for place in range(12)
    )
    record = world.take_in(source + some_lines(1, "last"))
    (shard,) = world.claimed()
    assembler = Assembler(world.database, world.clock)
    order = draws.draw(st.permutations(range(shard.jobs_count)))
    for number, index in enumerate(order):
        assert assembler.step() == []
        one = draws.draw(
            st.sampled_from([a_job_ran(index), a_failure(index, ErrorCode.ENGINE_REFUSED, status_code=400)])
        )
        world.record(world.ran(shard, one, number=number))
    assert len(assembler.step()) == 1
    written = _content(record)
    world.database.write(lambda connection: batches.reopen(connection, record.tenant_id, record.batch_id))
    assert len(Assembler(world.database, world.clock).step()) == 1
    assert _content(record) == written
    assert sum(content.count(b"\n") for content in written) == 13


def _chat(place, system):
    """A line whose prompt begins with `system`: those of one have neighbouring ids."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "hi"}]
    return a_line(f"n{place}", body={"messages": messages}) + b"\n"


@settings(max_examples=30)
@given(draws=st.data())
def test_lines_whose_prompts_begin_alike_are_written_in_the_order_of_the_input(make_world, draws):
    world = make_world()
    kinds = draws.draw(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=14))
    record = world.take_in(b"".join(_chat(place, kind) if kind else b"bad\n" for place, kind in enumerate(kinds)))
    expected = [f"n{place}" for place, kind in enumerate(kinds) if kind]
    shards = world.claimed()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("broker.stages.assembler._AHEAD_LINES", 2)
        patch.setattr("broker.stages.output_files._LINES_PER_PAGE", draws.draw(st.integers(1, 14)))
        patch.setattr("broker.ledger.results._RUN_JOBS_MIN", draws.draw(st.integers(1, 5)))
        assembler = Assembler(world.database, world.clock)
        for shard in shards:
            for number, index in enumerate(draws.draw(st.permutations(range(shard.jobs_count)))):
                assert assembler.step() == []
                world.record(world.ran(shard, a_job_ran(index), number=number))
        assert len(assembler.step()) == 1
    output, errors = _files(record)
    assert [line["custom_id"] for line in output] == expected
    assert len(errors) == len(kinds) - len(expected)


def test_lines_are_written_ahead_up_to_the_first_that_runs(world, ahead):
    record = world.take_in(b"bad\n" + some_lines(9))
    (shard,) = world.claimed()
    world.record(world.ran(shard, *(a_job_ran(index) for index in (0, 1, 2, 3, 5))))
    assembler = Assembler(world.database, world.clock)
    assembler.step()
    assembler._ahead[record.batch_id]._output._file.flush()  # (buffers are not what is tested)
    assembler._ahead[record.batch_id]._errors._file.flush()
    assert _written_so_far(record) == ["a0", "a1", "a2", "a3", None]
    assert not Path(record.output_path).exists()


def test_a_process_that_led_before_spoils_nothing(world, ahead):
    record = world.take_in(some_lines(9))
    (shard,) = world.claimed()
    world.record(world.ran(shard, *(a_job_ran(index) for index in range(4))))
    before, now = Assembler(world.database, world.clock), Assembler(world.database, world.clock)
    before.step()
    now.step()
    world.record(world.ran(shard, *(a_job_ran(index) for index in range(4, 9)), number=1))
    with pytest.raises(BrokerError, match="another process writes it too"):
        before.step()
    assert _draft(record.output_path).exists()
    assert len(now.step()) == 1
    assert [line["custom_id"] for line in _files(record)[0]] == [f"a{place}" for place in range(9)]


def test_a_process_that_led_before_forgets_what_another_finished(world, ahead):
    record = world.take_in(some_lines(9))
    (shard,) = world.claimed()
    world.record(world.ran(shard, *(a_job_ran(index) for index in range(4))))
    before = Assembler(world.database, world.clock)
    before.step()
    world.record(world.ran(shard, *(a_job_ran(index) for index in range(4, 9)), number=1))
    assert len(Assembler(world.database, world.clock).step()) == 1
    assert before.step() == []
    assert (before._ahead, len(_files(record)[0])) == ({}, 9)


def test_a_folder_that_takes_nothing_is_told_at_the_end_only(world, ahead):
    blocked = world.folder / "blocked"
    blocked.write_text("a file where the folder should be")
    world.take_in(some_lines(5), output_path=str(blocked / "out.jsonl"), error_path=str(blocked / "err.jsonl"))
    (shard,) = world.claimed()
    world.record(world.ran(shard, *(a_job_ran(index) for index in range(4))))
    assembler = Assembler(world.database, world.clock)
    assert assembler.step() == []
    world.record(world.ran(shard, a_job_ran(4), number=1))
    with pytest.raises(BrokerError, match=r"can't write .*blocked"):
        assembler.step()


def test_a_line_without_an_end_is_never_left_out(world):
    record = world.take_in(some_lines(3))
    world.run_all()
    world.database.write(lambda connection: connection.execute(update(batch).values(accepted_jobs=4)))
    world.database.write(lambda connection: connection.execute(update(batch_count).values(succeeded=4)))
    with pytest.raises(BrokerError, match="has 4 ended jobs and 0 refused lines, but 3 and 0 were found"):
        Assembler(world.database, world.clock).step()
    assert [path.name for path in world.folder.iterdir() if "jsonl" in path.name] == []
    assert world.batch(record.batch_id).finished_us is None
