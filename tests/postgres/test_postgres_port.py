"""Work on PostgreSQL as the port promises it: alone, bounded, quiet, and many rows at a time."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InternalError

from broker.database import connection as port
from broker.database.drivers.postgres.database import PostgresDatabase, PostgresTerms, open_postgres
from broker.database.tables import job, payload, plan, shard, tenant
from broker.domain.errors import BrokerError
from broker.domain.ids import new_id
from broker.domain.outcome import Outcome
from broker.ledger.tables import attempt, job_outcome, ledger_batch
from broker.ledger.verifying import verify
from broker.ledger.writing import Flush, append, open_stream
from tests.unit.builders import NOW_US, an_attempt_row, an_outcome_row


def add(name):
    return lambda connection: connection.execute(insert(tenant).values(tenant_id=name, created_us=1)) and name


def names(connection):
    return sorted(connection.execute(select(tenant.c.tenant_id)).scalars())


# --------------------------------------------------------------------------------------------------------- races


def test_deadlocks_are_run_again(database):
    for name in ("a", "b"):
        database.write(add(name))
    both_hold_one = threading.Barrier(2, timeout=5)
    tries = []

    def work_on(first, second):
        def work(connection):
            change = update(tenant).values(created_us=tenant.c.created_us + 1)
            connection.execute(change.where(tenant.c.tenant_id == first))
            tries.append(first)
            if tries.count(first) == 1:
                both_hold_one.wait()
            connection.execute(change.where(tenant.c.tenant_id == second))

        return work

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda pair: database.write(work_on(*pair)), [("a", "b"), ("b", "a")]))
    assert len(tries) == 3
    found = database.read(lambda connection: connection.execute(select(tenant.c.created_us)).scalars().all())
    assert found == [3, 3]


def test_two_who_decide_one_job_are_told_apart_and_the_ledger_holds(database):
    """Both find it undecided, both write its end; the later one's work runs again and sees the other's row."""
    job_id = new_id()
    together = threading.Barrier(2, timeout=5)
    runs = []

    def recorder(slot):
        def work(connection):
            stream = open_stream(connection, slot, NOW_US)
            ended = connection.execute(select(job_outcome.c.job_id)).scalars().all()
            runs.append(slot)
            if runs.count(slot) == 1:
                together.wait()
            outcomes = [] if ended else [an_outcome_row(job_id=job_id)]
            append(connection, stream, Flush(attempts=[an_attempt_row(job_id=job_id)], outcomes=outcomes), NOW_US)

        database.write(work)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(recorder, ["recorder-0", "recorder-1"]))
    found = database.read(verify)
    assert (len(runs), found.streams, found.rows, found.faults) == (3, 2, 3, [])


def test_two_writers_of_one_stream_leave_no_gap(database):
    with ThreadPoolExecutor(4) as pool:

        def flush(number):
            def work(connection):
                stream = open_stream(connection, "recorder-0", NOW_US)
                append(connection, stream, Flush(attempts=[an_attempt_row()]), NOW_US + number)

            database.write(work)

        list(pool.map(flush, range(40)))
    found = database.read(verify)
    assert (found.streams, found.batches, found.rows, found.faults) == (1, 40, 40, [])


def test_other_doubles_are_the_callers_matter(database):
    database.write(add("a"))
    began = time.monotonic()
    with pytest.raises(IntegrityError):
        database.write(add("a"))
    assert time.monotonic() - began < 2


# ------------------------------------------------------------------------------------------------------ the port


def test_what_fails_is_not_kept_and_the_connection_goes_on(database):
    def fail(connection):
        add("half")(connection)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        database.write(fail)

    def go_on(connection):
        with contextlib.suppress(IntegrityError):
            connection.execute(insert(tenant), [{"tenant_id": "x", "created_us": 1}] * 2)

    with pytest.raises(BrokerError, match="went on after one of its statements had failed"):
        database.write(go_on)
    assert database.read(names) == []
    assert database.write(add("next")) == "next"


def test_readers_see_a_snapshot_and_can_not_write(database):
    def read_while_written(connection):
        before = names(connection)
        database.write(add("meanwhile"))
        return before + names(connection)

    assert database.read(read_while_written) == []
    assert database.read(names) == ["meanwhile"]
    with pytest.raises(InternalError, match="read-only"):
        database.read(add("x"))


def test_sessions_are_set_up(database):
    shown = ("timezone", "statement_timeout", "idle_in_transaction_session_timeout", "synchronous_commit")

    def look(connection):
        return [connection.execute(text(f"SHOW {name}")).scalar() for name in shown]

    assert database.write(look)[:3] == ["UTC", "1min", "1min"]
    assert database.write(look, durable=False)[3] == "off"
    application = database.read(lambda connection: connection.execute(text("SHOW application_name")).scalar())
    assert application.startswith("test ")


def test_the_pool_is_bounded_and_says_so(postgres_url):
    database = PostgresDatabase(postgres_url, PostgresTerms(pool_size=1, pool_seconds=0.1, retry_seconds=0.2))
    entered, leave = threading.Event(), threading.Event()
    holder = threading.Thread(target=database.write, args=[lambda _: (entered.set(), leave.wait(5))])
    holder.start()
    entered.wait(5)
    with pytest.raises(BrokerError, match=r"no connection to the database became free in 0\.1 s"):
        database.write(add("x"))
    leave.set()
    holder.join()
    database.close()


def test_close_waits_for_what_was_begun_and_lets_nothing_in(database):
    entered, leave = threading.Event(), threading.Event()

    def slow(connection):
        entered.set()
        leave.wait(5)
        return add("kept")(connection)

    writer = threading.Thread(target=database.write, args=[slow])
    writer.start()
    entered.wait(5)
    closer = threading.Thread(target=database.close)
    closer.start()
    time.sleep(0.05)
    with pytest.raises(BrokerError, match="the database is closed"):
        database.write(add("x"))
    assert closer.is_alive()
    leave.set()
    writer.join(5)
    closer.join(5)
    assert not closer.is_alive()
    database.close()  # harmless


def test_errors_quote_neither_values_nor_passwords(database, postgres_url):
    secret = "the prompt that nobody may see"

    def double(connection):
        port.bulk_insert(connection, tenant, [(secret, 1), (secret, 1)])

    def null(connection):
        connection.execute(insert(payload).values(job_id=new_id(), body=secret.encode()))

    def misfit(connection):
        connection.execute(text("SELECT CAST(:value AS integer)"), {"value": secret})

    def misfit_copied(connection):
        port.bulk_insert(connection, tenant, [(secret * 9, 1)])

    for work in (double, null, misfit, misfit_copied):
        with pytest.raises(DBAPIError) as told:
            database.write(work)
        assert secret not in str(told.value)
    with pytest.raises(BrokerError) as told:
        open_postgres("postgresql://someone:hush@127.0.0.1:1/nowhere")
    assert "hush" not in str(told.value)
    with pytest.raises(BrokerError, match="can't be read") as told:
        open_postgres("postgres//someone:hush")
    assert "hush" not in str(told.value)


# ------------------------------------------------------------------------------------------------------ many rows


def _whole(row):
    """The row with proof columns, in the table's order."""
    proof = {"recorded_us": NOW_US, "stream_id": b"s" * 16, "seq": 0, "ledger_batch": 0, "schema_version": 1}
    values = {"leaf": b"l" * 32, **proof, **row._asdict(), **row.shard._asdict()}
    return tuple(values[column.name] for column in attempt.c)


def test_copied_rows_come_back_as_they_went(database):
    row = an_attempt_row(outcome=Outcome.SUCCEEDED, batch_id=None, started_us=None, trace_id=None, run_us=2**62)
    values = _whole(row)
    database.write(lambda connection: port.bulk_insert(connection, attempt, [values]))
    assert tuple(database.read(lambda connection: connection.execute(select(attempt)).one())) == values
    database.write(lambda connection: port.bulk_insert(connection, attempt, []))


@pytest.mark.parametrize(("column", "number"), [("status_code", 2**31), ("status_code", -(2**40)), ("run_us", 2**63)])
def test_a_number_that_does_not_fit_is_refused_and_not_cut_off(database, column, number):
    row = an_attempt_row(**{column: number})
    values = _whole(row)
    with pytest.raises((DataError, OverflowError)):
        database.write(lambda connection: port.bulk_insert(connection, attempt, [values]))
    assert database.read(lambda connection: connection.execute(select(attempt)).all()) == []


@settings(max_examples=60)
@given(st.text(max_size=40), st.binary(max_size=40))
@example("a\0b", b"\0\xff")
@example("\\N\t\n", b"\\x")
def test_any_text_and_any_bytes_are_kept(database, custom_id, body):
    job_id = new_id()

    def work(connection):
        line = (job_id, "t", b"g" * 16, None, None, custom_id, 1, 1, 1, None, None, None)
        port.bulk_insert(connection, job, [line])
        port.bulk_insert(connection, payload, [(job_id, body, None, b"salt" * 4)])

    database.write(work)
    query = select(job.c.custom_id, payload.c.body).join(payload, payload.c.job_id == job.c.job_id)
    found = database.read(lambda connection: connection.execute(query.where(job.c.job_id == job_id)).one())
    assert tuple(found) == (custom_id.replace("\0", "\ufffd"), body)


def test_a_nul_in_a_ledger_row_is_replaced_before_it_is_hashed(database):
    row = an_attempt_row(provider_request_id="a\0b")
    flush = Flush(attempts=[row])
    database.write(lambda connection: append(connection, open_stream(connection, "r", NOW_US), flush, NOW_US))
    assert database.read(verify).faults == []


def test_updated_rows_are_those_named(database):
    ids = [new_id() for _ in range(50)]

    def fill(connection):
        rest = ("t", b"g" * 16, None, "lane", None, "why", 1, "sent", 1, 1, None, None, None, b"", None, 0, None, False)
        rows = [(one, *rest) for one in ids]
        port.bulk_insert(connection, shard, rows)
        changes = [(one, bytes([place]), "done", place or None) for place, one in enumerate(ids[:40])]
        port.bulk_update(connection, shard.c.shard_id, [shard.c.recorded, shard.c.state, shard.c.closed_us], changes)

    database.write(fill)
    rows = database.read(lambda connection: connection.execute(select(shard).order_by(shard.c.shard_id)).all())
    found = {row.shard_id: (row.recorded, row.state, row.closed_us) for row in rows}
    assert found == {
        one: (bytes([place]), "done", place or None) if place < 40 else (b"", "sent", None)
        for place, one in enumerate(ids)
    }


def test_a_large_ledger_is_verified_piece_by_piece(database):
    rows = [an_attempt_row() for _ in range(3_000)]
    database.write(
        lambda connection: append(connection, open_stream(connection, "r", NOW_US), Flush(attempts=rows), NOW_US)
    )
    found = database.read(verify)
    assert (found.rows, found.faults) == (3_000, [])
    assert database.read(lambda connection: connection.execute(select(ledger_batch)).one()).rows_count == 3_000
    assert database.read(lambda connection: connection.execute(select(plan)).all()) == []
