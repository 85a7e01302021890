"""The character NUL, which PostgreSQL's text can't hold, in every text that a producer sets: on both databases."""

from __future__ import annotations

import msgspec
import pytest

from broker.database import batches
from broker.database.connection import bulk_insert
from broker.database.tables import batch, batch_refusal, idempotency, job, payload, reply
from broker.domain.errors import ErrorCode
from broker.domain.ids import new_id
from broker.intake.uploads import UPLOAD_PREFIX, Spool, UploadReader
from tests.unit.builders import ENDPOINT, MODEL, NOW_US, a_line
from tests.unit.producers import QUEUE, ProducersWorld, a_request

NUL = "a\0b"
KEPT = "a\N{REPLACEMENT CHARACTER}b"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
LINES = {
    "custom_id": a_line(NUL),
    "custom_id of a refused line": a_line(NUL, url=1),
    "method": a_line("one", method=NUL),
    "url": a_line("one", url=NUL),
    "model": a_line("one", body={"model": NUL}),
    "content": a_line("one", body={"messages": [{"role": "user", "content": NUL}]}),
    "field": a_line("one", body={NUL: NUL}),
    "other field": a_line("one", **{NUL: NUL}),
}
JOBS = {
    "endpoint": {"endpoint": NUL},
    "model": {"body": BODY | {"model": NUL}},
    "content": {"body": BODY | {"messages": [{"role": "user", "content": NUL}]}},
    "window": {"window": NUL},
    "deadline": {"deadline": NUL},
    "budget": {"budget_usd": NUL},
    "tag": {"tags": {NUL: "x"}},
    "tag's value": {"tags": {"x": NUL}},
    "lanes": {"constraints": {"lanes": [NUL]}},
    "regions": {"constraints": {"regions": [NUL]}},
    "key": {"idempotency_key": NUL},
    "key of a job refused for its model": {"idempotency_key": NUL, "body": BODY | {"model": "other"}},
    "key that is too long": {"idempotency_key": "x" * 300, "body": BODY | {"model": "other"}},
    "unknown field": {NUL: NUL},
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_a_line_with_nul_runs_or_is_refused_and_the_next_runs(world, line):
    record = world.take_in(line + b"\n" + a_line("two") + b"\n", name=NUL)
    kept = world.batch(record.batch_id)
    assert (kept.accepted_jobs + kept.refused_lines, kept.name) == (2, KEPT)
    assert "two" in {row.custom_id for row in world.rows(job)}
    assert not any("\0" in (row.custom_id or "") + row.message for row in world.rows(batch_refusal))


@pytest.mark.parametrize("fields", JOBS.values(), ids=JOBS)
def test_a_job_with_nul_is_stored_or_refused_and_the_next_is_stored(world, fields):
    bus = ProducersWorld(world)
    try:
        bus.put(bus.sealed([a_request() | fields, a_request()], reply_to=QUEUE))
        bus.put(bus.sealed([a_request(), a_request() | fields]))
        bus.receive(2)
        assert bus.waiting() == bus.dead() == 0
        first, second = sorted(world.rows(reply), key=lambda row: row.place)
        assert (first.job_id is None) == (first.error_code is not None)
        assert second.job_id is not None
        assert world.count(payload) >= 2
    finally:
        bus.close()


def test_free_text_is_kept_without_it_and_a_producers_name_with_it_is_refused(world):
    record = world.create(b"x")
    code = ErrorCode.INVALID_LINE.value
    rows = [(record.batch_id, number, words, code, f"{words}") for number, words in enumerate([NUL, "plain", NUL])]
    world.database.write(lambda connection: bulk_insert(connection, batch_refusal, rows))
    kept = sorted(world.rows(batch_refusal), key=lambda row: row.line_number)
    assert [(row.custom_id, row.message) for row in kept] == [(KEPT, KEPT), ("plain", "plain"), (KEPT, KEPT)]
    name = ("t", NUL, b"f" * 32, new_id(), NOW_US)
    with pytest.raises(ValueError, match="idempotency_key holds the character NUL"):
        world.database.write(lambda connection: bulk_insert(connection, idempotency, [name]))


def test_an_upload_that_can_not_be_taken_in_holds_up_none_after_it(world, tmp_path):
    for content in (a_line("sick") + b"\n", a_line("well") + b"\n"):
        spool = Spool(tmp_path, 10_000, None)
        spool.add(content)
        spool.finish()
        world.create(content, source_name=UPLOAD_PREFIX + spool.path.name)

    def read_batch(record, source):
        if b"sick" in source.read():
            raise ValueError("what nobody thought of")
        source.seek(0)
        return world.intake.read_batch(record, source)

    reader = UploadReader(world.database, tmp_path, read_batch, lambda: False)
    assert (reader.step(), reader.step()) == (True, False)
    assert [row.custom_id for row in world.rows(job)] == ["well"]
    assert sorted(row.read_us is None for row in world.rows(batch)) == [False, True]
    assert UploadReader(world.database, tmp_path, world.intake.read_batch, lambda: False).step()  # once it is mended
    assert len(world.read(batches.unfinished)) == world.count(job) == 2


def test_what_a_line_says_reaches_the_engine_as_it_was(world):
    body = msgspec.json.encode(BODY | {"messages": [{"role": "user", "content": NUL}]})
    world.take_in(b'{"custom_id":"a","method":"POST","url":"%s","body":%s}\n' % (ENDPOINT.encode(), body))
    assert [bytes(row.body) for row in world.rows(payload)] == [body]
