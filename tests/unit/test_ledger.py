from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, text, update
from sqlalchemy.exc import DatabaseError

from broker.domain.errors import UsageError
from broker.domain.ids import new_id
from broker.ledger.canonical import row_leaf
from broker.ledger.questions import GROUP_KEYS, Filters, summary
from broker.ledger.tables import attempt, job_outcome, ledger_batch
from broker.ledger.verifying import verify
from broker.ledger.versions import CURRENT, columns_of
from broker.ledger.writing import Flush, append, open_stream
from tests.unit.builders import GENERATE_ONLY, NOW_US, an_attempt_row, an_outcome_row


def _append(database, *flushes, slot="recorder-0", now_us=NOW_US):
    def work(connection):
        stream = open_stream(connection, slot, NOW_US)
        for flush in flushes:
            append(connection, stream, flush, now_us)

    database.write(work)


def _two_rows(cost=7):
    return Flush(attempts=[an_attempt_row(cost_nano_usd=cost)], outcomes=[an_outcome_row()])


@pytest.fixture
def ledger(database):
    """Three batches of four rows in one stream, one batch in another."""
    flushes = [Flush(attempts=_two_rows().attempts * 3, outcomes=[an_outcome_row()]) for _ in range(3)]
    _append(database, *flushes)
    _append(database, _two_rows(), slot="rescuer-0")
    return database


def _tamper(database, *statements):
    """As someone would who owns the database: the triggers go first."""

    def work(connection):
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        else:
            names = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all()
            for name in names:
                connection.execute(text(f'DROP TRIGGER "{name}"'))
        for statement in statements:
            connection.execute(statement)

    database.write(work)


def _faults(database):
    return database.read(verify).faults


def test_an_intact_ledger_passes_and_is_counted(ledger):
    found = ledger.read(verify)
    assert (found.streams, found.batches, found.rows, found.cost_nano_usd) == (2, 4, 14, 70)
    assert found.faults == []


def test_appending_nothing_writes_nothing(ledger):
    _append(ledger, Flush())
    assert ledger.read(verify).batches == 4


def test_a_stream_goes_on_where_it_stood_and_a_failed_flush_leaves_no_gap(ledger):
    def fail(connection):
        append(connection, open_stream(connection, "recorder-0", NOW_US), _two_rows(), NOW_US)
        raise ValueError("undone")

    with pytest.raises(ValueError, match="undone"):
        ledger.write(fail)
    _append(ledger, _two_rows())
    found = ledger.read(verify)
    assert (found.streams, found.batches, found.faults) == (2, 5, [])


@pytest.mark.parametrize("table", [attempt, job_outcome, ledger_batch], ids=str)
def test_the_database_itself_refuses_to_change_the_ledger(ledger, table):
    for statement in (update(table).values(schema_version=2), delete(table)):
        with pytest.raises(DatabaseError):
            ledger.write(lambda connection, statement=statement: connection.execute(statement))
    assert _faults(ledger) == []


@pytest.mark.parametrize(
    "column", [one.name for one in attempt.c if one.name not in {"stream_id", "seq", "leaf"}], ids=str
)
def test_an_edited_field_is_found_whichever_it_is(ledger, column):
    changed = attempt.c[column]
    word = "edited"[: getattr(changed.type, "length", None)]
    value = {bytes: b"y" * 16, str: word, int: 99, bool: None, object: b"y" * 16}[changed.type.python_type]
    edit = update(attempt).where(attempt.c.seq == 1, attempt.c.ledger_batch == 0)
    _tamper(ledger, edit.values({column: ~changed if value is None else value}))
    refused = "can't be checked: it is of ledger version 99, and this program knows 1 and 2"
    expected = refused if column == "schema_version" else "is not what was written"
    assert any(f"row 1 of attempt {expected}" in fault for fault in _faults(ledger))


def test_an_edit_with_its_leaf_made_to_fit_is_found_by_the_batch(ledger):
    row = ledger.read(lambda connection: connection.execute(select(attempt).where(attempt.c.seq == 5)).one())
    values = [99 if name == "cost_nano_usd" else row._mapping[name] for name in columns_of(attempt, CURRENT)]
    change = update(attempt).where(attempt.c.seq == 5).values(cost_nano_usd=99, leaf=row_leaf("attempt", values))
    _tamper(ledger, change)
    assert _faults(ledger) == ["stream recorder-0, batch 1: its rows are not those that it was sealed with"]


@pytest.mark.parametrize("seq", [0, 3, 4, 11])
def test_a_deleted_row_is_found(ledger, seq):
    table = job_outcome if seq % 4 == 3 else attempt
    _tamper(ledger, delete(table).where(table.c.seq == seq, table.c.ledger_batch == seq // 4))
    faults = _faults(ledger)
    assert any(f"batch {seq // 4}: it was written with 4 rows, and now has 3" in fault for fault in faults)


def test_swapped_rows_are_found(ledger):
    def swap(one, other):
        return update(attempt).where(attempt.c.seq == one).values(seq=other)

    _tamper(ledger, swap(4, 1_000), swap(5, 4), swap(1_000, 5))
    assert len(_faults(ledger)) >= 2


def test_a_row_put_in_is_found(ledger):
    copy = "INSERT INTO attempt SELECT {} FROM attempt WHERE seq = 2"
    columns = [one.name for one in attempt.c]
    beyond = copy.format(", ".join("99" if name == "seq" else name for name in columns))
    _tamper(ledger, text(beyond))
    assert _faults(ledger) == ["stream recorder-0: 1 rows belong to no batch"]


def test_a_row_put_in_twice_within_a_batch_is_found(ledger):
    columns = ", ".join("1" if one.name == "recorded_us" else one.name for one in attempt.c)
    _tamper(ledger, text(f"INSERT INTO attempt SELECT {columns} FROM attempt WHERE seq = 5"))
    assert any("written with 4 rows, and now has 5" in fault for fault in _faults(ledger))


@pytest.mark.parametrize("number", [0, 1])
def test_a_removed_batch_with_all_its_rows_is_found(ledger, number):
    def gone(table, column):
        stream = select(ledger_batch.c.stream_id).where(ledger_batch.c.batch_number == 2).scalar_subquery()
        return delete(table).where(column == number, table.c.stream_id == stream)

    _tamper(
        ledger,
        gone(attempt, attempt.c.ledger_batch),
        gone(job_outcome, job_outcome.c.ledger_batch),
        gone(ledger_batch, ledger_batch.c.batch_number),
    )
    faults = _faults(ledger)
    assert f"stream recorder-0, batch {number + 1}: batch {number} is missing before it" in faults
    assert f"stream recorder-0, batch {number + 1}: it does not continue the batch before it" in faults


@pytest.mark.parametrize("column", ["sum_cost_nano_usd", "merkle_root", "previous_hash", "batch_hash", "rows_count"])
def test_an_edited_batch_record_is_found(ledger, column):
    value = 3 if column.endswith(("usd", "count")) else bytes(31) + b"\1"
    _tamper(ledger, update(ledger_batch).where(ledger_batch.c.batch_number == 1).values({column: value}))
    assert any("batch 1" in fault for fault in _faults(ledger))


# ----------------------------------------------------------------------------------------------------- questions


def _percentile(values, percent):
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def _whole_ms(duration_us):
    return (duration_us + 500) // 1_000  # a half is rounded up, where Python's own rounding goes to the even number


_measured = st.lists(
    st.tuples(
        st.sampled_from(["lane-a", "lane-b"]),
        st.sampled_from(["succeeded", "failed", "superseded"]),
        st.integers(0, 10**7),
        st.integers(0, 10**7),
        st.integers(0, 1_000),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=8, phases=GENERATE_ONLY)
@given(_measured)
@example([("lane-a", "superseded", 211_980, 483_741, 55), ("lane-a", "succeeded", 500, 2_500, 361)])
def test_a_summary_says_what_counting_by_hand_says(make_world, measured):
    database = make_world().database
    rows = [
        an_attempt_row(
            lane=lane,
            outcome=outcome,
            decisive=outcome != "superseded",
            queue_us=queue,
            run_us=run,
            cost_nano_usd=cost,
            cost_upper_nano_usd=cost + run,
            input_tokens=None if outcome == "failed" else cost,
            output_tokens=None if outcome == "failed" else 2,
        )
        for lane, outcome, queue, run, cost in measured
    ]
    _append(database, Flush(attempts=rows))
    found = {row["lane"]: row for row in database.read(lambda connection: summary(connection, ["lane"], Filters()))}
    assert found.keys() == {row.shard.lane for row in rows}
    for lane, row in found.items():
        mine = [one for one in rows if one.shard.lane == lane]
        known = [one for one in mine if one.outcome != "failed"]
        assert row == {
            "lane": lane,
            "jobs": len(mine),
            "attempts": len(mine),
            "succeeded": sum(one.outcome == "succeeded" for one in mine),
            "failed": sum(one.outcome == "failed" for one in mine),
            "input_tokens": sum(one.input_tokens for one in known) if known else None,
            "output_tokens": 2 * len(known) if known else None,
            "usage_unknown": len(mine) - len(known),
            "cost_nano_usd": sum(one.cost_nano_usd for one in mine),
            "wasted_nano_usd": sum(one.cost_nano_usd for one in mine if one.outcome != "succeeded"),
            "unknown_upper_nano_usd": sum(one.run_us for one in mine),
            "queue_ms_p50": _whole_ms(_percentile([one.queue_us for one in mine], 50)),
            "queue_ms_p95": _whole_ms(_percentile([one.queue_us for one in mine], 95)),
            "run_ms_p50": _whole_ms(_percentile([one.run_us for one in mine], 50)),
            "run_ms_p95": _whole_ms(_percentile([one.run_us for one in mine], 95)),
        }


def test_attempts_of_one_job_are_one_job(database):
    job = new_id()
    _append(database, Flush(attempts=[an_attempt_row(job_id=job, decisive=False), an_attempt_row(job_id=job)]))
    (row,) = database.read(lambda connection: summary(connection, [], Filters()))
    assert (row["jobs"], row["attempts"], row["succeeded"]) == (1, 2, 1)


def test_every_key_can_be_asked_for_and_others_are_named(database):
    _append(database, _two_rows())
    for key in GROUP_KEYS:
        (row,) = database.read(lambda connection, key=key: summary(connection, [key], Filters()))
        assert row["attempts"] == 1
    (row,) = database.read(lambda connection: summary(connection, list(GROUP_KEYS), Filters()))
    assert row["day"] == "2027-01-15"
    with pytest.raises(UsageError, match="--by names 'colour'; it takes provider, lane"):
        database.read(lambda connection: summary(connection, ["lane", "colour"], Filters()))


def test_spend_is_told_apart_by_tag(database):
    teams = ('{"team":"blé","tier":"a"}', '{"team":"b"}', '{"team":"blé"}', '{"owner":"blé"}', None)
    _append(database, Flush(attempts=[an_attempt_row(tags=tags, cost_nano_usd=7) for tags in teams]))

    def spent(*by, tags=()):
        rows = database.read(lambda connection: summary(connection, by, Filters(tags=tags)))
        return {tuple(row[key] for key in by): row["cost_nano_usd"] for row in rows}

    assert spent("tag:team") == {("blé",): 14, ("b",): 7, (None,): 14}
    assert spent("tag:team", "tag:tier")[("blé", "a")] == 7
    assert spent(tags=(("team", "blé"),)) == {(): 14}
    assert spent(tags=(("team", "blé"), ("tier", "a"))) == {(): 7}
    assert spent("tag:team", tags=(("owner", "nobody"),)) == {}
    with pytest.raises(UsageError, match="can't be asked for"):
        spent('tag:a"b')


def test_filters_choose_by_tenant_batch_and_time(database):
    batch_id = new_id()
    _append(database, Flush(attempts=[an_attempt_row(tenant_id="t", batch_id=batch_id)]), now_us=100)
    _append(database, Flush(attempts=[an_attempt_row(tenant_id="u")]), now_us=200)

    def attempts(**filters):
        rows = database.read(lambda connection: summary(connection, ["tenant"], Filters(**filters)))
        return {row["tenant"]: row["attempts"] for row in rows}

    assert attempts() == {"t": 1, "u": 1}
    assert attempts(tenant_id="u") == {"u": 1}
    assert attempts(batch_id=batch_id) == {"t": 1}
    assert attempts(since_us=200) == {"u": 1}
    assert attempts(until_us=200) == {"t": 1}
    assert attempts(until_us=50) == {}
