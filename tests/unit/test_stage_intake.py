from __future__ import annotations

import io

import pytest

from broker.database.tables import batch_refusal, job, payload
from broker.domain.errors import ErrorCode
from broker.domain.job import BatchStatus, Constraints
from broker.intake import batch_files as intake
from broker.intake import batch_lines
from broker.ledger.results import refused_lines
from tests.unit.builders import DAY_SECONDS, NOW_US, SECOND_US, a_line, some_lines


def _refused(world, record):
    return {line.line_number: line.code for line in world.read(refused_lines, record.batch_id, 0, 100)}


def _accepted(world):
    return {row.line_number: row.custom_id for row in world.rows(job)}


def test_every_line_becomes_a_waiting_job_with_its_payload(world):
    record = world.take_in(some_lines(3), constraints=Constraints(lanes=("lane-a",)))
    assert (record.status, record.read_lines, record.accepted_jobs, record.refused_lines) == (
        BatchStatus.RUNNING, 3, 3, 0
    )  # fmt: skip
    assert record.deadline_us == NOW_US + DAY_SECONDS * SECOND_US
    assert _accepted(world) == {1: "a0", 2: "a1", 3: "a2"}
    (span,) = world.waiting()
    assert (span.jobs_count, span.batch_id, span.deadline_us) == (3, record.batch_id, record.deadline_us)
    salts = {row.salt for row in world.rows(payload)}
    assert len(salts) == 3
    assert span.body_bytes_max == max(len(row.body) for row in world.rows(payload))


def test_models_and_endpoints_are_groups_of_their_own(world):
    lines = [a_line("a"), a_line("b", body={"model": "m2"}), a_line("c")]
    embedding = b'{"custom_id":"d","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":"x"}}'
    world.take_in(b"\n".join([*lines, embedding]))
    assert sorted(span.jobs_count for span in world.waiting()) == [1, 1, 2]
    assert len({span.group_id for span in world.waiting()}) == 3


def test_bom_crlf_and_a_last_line_without_its_end_are_read(world):
    record = world.take_in(b"\xef\xbb\xbf" + a_line("a") + b"\r\n" + a_line("b") + b"\r\n" + a_line("c"))
    assert _accepted(world) == {1: "a", 2: "b", 3: "c"}
    assert record.refused_lines == 0


def test_a_bom_is_nothing_in_any_other_place(world):
    record = world.take_in(a_line("a") + b"\n\xef\xbb\xbf" + a_line("b") + b"\n")
    assert _refused(world, record) == {2: ErrorCode.INVALID_LINE}


def test_bad_lines_are_refused_by_number_and_the_rest_runs(world):
    lines = [a_line("a"), b"{", a_line("a"), a_line("b")]
    record = world.take_in(b"\n".join(lines) + b"\n")
    assert _refused(world, record) == {2: ErrorCode.INVALID_LINE, 3: ErrorCode.DUPLICATE_CUSTOM_ID}
    assert _accepted(world) == {1: "a", 4: "b"}
    assert (record.accepted_jobs, record.refused_lines, record.read_lines) == (2, 2, 4)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_empty_lines_are_passed_over_and_still_counted_where_a_line_is_named(world, monkeypatch, end):
    monkeypatch.setattr(batch_lines, "_CHUNK_LINES", 2)
    lines = [b"", a_line("a"), b"  ", b"\t", b"", a_line("b"), b"{", b"", a_line("a"), b" ", b""]
    record = world.take_in(b"\xef\xbb\xbf" + end.join(lines) + end)
    assert _refused(world, record) == {7: ErrorCode.INVALID_LINE, 9: ErrorCode.DUPLICATE_CUSTOM_ID}
    assert _accepted(world) == {2: "a", 6: "b"}
    assert (record.accepted_jobs, record.refused_lines, record.lines_in, record.read_lines) == (2, 2, 4, 11)


LINE_BYTES_MAX = 300_000


@pytest.fixture
def short_lines(monkeypatch):
    """The limit of a line, less large than it is, so that a test need not write it."""
    monkeypatch.setattr(batch_lines, "LINE_BYTES_MAX", LINE_BYTES_MAX)
    monkeypatch.setattr(batch_lines, "_KEPT_OF_LONG_LINES", 100_000)


def _line_of(size, custom_id):
    short = a_line(custom_id)
    return short[:-1] + b" " * (size - len(short)) + b"}"


@pytest.mark.usefixtures("short_lines")
def test_an_over_long_line_is_refused_alone_and_the_limit_is_exact(world):
    lines = [_line_of(LINE_BYTES_MAX, "fits"), _line_of(LINE_BYTES_MAX + 1, "not"), b"x" * 700_000, a_line("last")]
    content = b"\n".join(lines)
    record = world.take_in(content)
    assert _refused(world, record) == {2: ErrorCode.LINE_TOO_LARGE, 3: ErrorCode.LINE_TOO_LARGE}
    assert _accepted(world) == {1: "fits", 4: "last"}
    assert record.read_bytes == len(content)


@pytest.mark.usefixtures("short_lines")
def test_an_over_long_last_line_is_refused_too(world):
    record = world.take_in(a_line("a") + b"\n" + b"y" * (LINE_BYTES_MAX + 1))
    assert _refused(world, record) == {2: ErrorCode.LINE_TOO_LARGE}
    assert record.read_us is not None


@pytest.mark.parametrize("content", [b"", b"\n \r\n\n"])
def test_a_batch_of_no_lines_does_not_stay_in_reading(world, content):
    record = world.take_in(content)
    assert record.read_us is not None
    assert (record.lines_in, world.count(job)) == (0, 0)


@pytest.mark.usefixtures("short_lines")
def test_a_line_that_is_too_long_is_known_by_the_name_at_its_beginning(world):
    lines = [_line_of(LINE_BYTES_MAX + 1, "long"), b'{"body":"' + b"x" * LINE_BYTES_MAX + b'","custom_id":"late"}']
    record = world.take_in(b"\n".join(lines))
    named = {line.line_number: line.custom_id for line in world.read(refused_lines, record.batch_id, 0, 100)}
    assert named == {1: "long", 2: None}


def test_reading_goes_on_exactly_where_it_was_interrupted(world, monkeypatch):
    monkeypatch.setattr(batch_lines, "_CHUNK_LINES", 3)
    content = b"\xef\xbb\xbf" + some_lines(4) + b"bad\n" + some_lines(4, "b") + a_line("a1") + b"\n" + a_line("z")
    record = world.create(content)
    steps = 0
    while record.read_us is None:
        source = io.BytesIO(content)
        record = next(world.intake.read_batch(world.batch(record.batch_id), source))
        assert record == world.batch(record.batch_id)
        assert content[: record.read_bytes].count(b"\n") == min(record.read_lines, 10)
        steps += 1
    assert steps == 4
    expected = [f"a{n}" for n in range(4)] + [None] + [f"b{n}" for n in range(4)] + [None, "z"]
    assert _accepted(world) == {number: name for number, name in enumerate(expected, 1) if name}
    assert _refused(world, record) == {5: ErrorCode.INVALID_LINE, 10: ErrorCode.DUPLICATE_CUSTOM_ID}
    assert (record.accepted_jobs, record.refused_lines, record.read_lines) == (9, 2, 11)
    assert world.waiting_jobs() == 9
    assert list(world.intake.read_batch(record, io.BytesIO(content))) == []


def test_a_chunk_that_fails_leaves_nothing_and_is_read_again(world, monkeypatch):
    monkeypatch.setattr(batch_lines, "_CHUNK_LINES", 2)
    content = some_lines(4)
    record = next(world.intake.read_batch(world.create(content), io.BytesIO(content)))
    with monkeypatch.context() as broken:
        broken.setattr(intake.batches, "advance_reading", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            next(world.intake.read_batch(record, io.BytesIO(content)))
    assert (world.count(job), world.count(batch_refusal), world.waiting_jobs()) == (2, 0, 2)
    *_, record = world.intake.read_batch(record, io.BytesIO(content))
    assert _accepted(world) == {1: "a0", 2: "a1", 3: "a2", 4: "a3"}


def test_two_batches_may_use_the_same_names(world):
    world.take_in(some_lines(2))
    record = world.take_in(some_lines(2))
    assert (record.accepted_jobs, record.refused_lines) == (2, 0)
