"""Exactly once, whatever becomes of the connection; nothing waits for ever, and nothing says what it was given."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InternalError, OperationalError

from broker.database import connection as port
from broker.database.marks import MarkLost, Slot, forget_old_marks
from broker.database.postgres import PostgresDatabase, PostgresTerms, open_postgres
from broker.database.sqlite import is_passing
from broker.database.tables import commit_mark, job, payload, plan, shard, tenant
from broker.domain.errors import BrokerError
from broker.domain.ids import new_id
from broker.domain.outcome import Outcome
from broker.ledger.tables import attempt, job_outcome, ledger_batch
from broker.ledger.verifying import verify
from broker.ledger.writing import Flush, append, open_stream
from tests.proxy import Way
from tests.unit.builders import NOW_US, an_attempt_row, an_outcome_row


def add(name):
    return lambda connection: connection.execute(insert(tenant).values(tenant_id=name, created_us=1)) and name


def names(connection):
    return sorted(connection.execute(select(tenant.c.tenant_id)).scalars())


def count_up(connection):
    """Not idempotent: each time it is kept, it counts one more."""
    return connection.execute(
        update(tenant).values(created_us=tenant.c.created_us + 1).returning(tenant.c.created_us)
    ).scalar_one()


def counted(database):
    return database.read(lambda connection: connection.execute(select(tenant.c.created_us)).scalar_one())


@pytest.fixture
def shaky(proxied_url, proxy):
    """A database behind the proxy, and a row to count on."""
    opened = PostgresDatabase(proxied_url, PostgresTerms(retry_seconds=10.0))
    opened.write(lambda connection: connection.execute(insert(tenant).values(tenant_id="t", created_us=0)))
    yield opened
    proxy.heal()
    opened.close()


# ------------------------------------------------------------------------------------------- commits in doubt


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("deliver", [True, False], ids=["the answer is lost", "the commit is lost"])
def test_a_commit_in_doubt_is_kept_once(shaky, proxy, deliver, durable):
    for number in range(1, 4):
        sprung = proxy.cut_when(b"COMMIT", Way.TO_SERVER, deliver=deliver)
        assert shaky.write(count_up, durable=durable) == number
        assert sprung.is_set()
        assert counted(shaky) == number
    assert shaky.write(count_up) == 4


def test_work_runs_again_only_where_its_commit_did_not_arrive(shaky, proxy):
    runs = []

    def work(connection):
        runs.append(1)
        return count_up(connection)

    proxy.cut_when(b"COMMIT", Way.TO_SERVER, deliver=True)
    shaky.write(work)
    assert len(runs) == 1
    proxy.cut_when(b"COMMIT", Way.TO_SERVER)
    shaky.write(work)
    assert len(runs) == 3
    assert counted(shaky) == 2


def test_work_that_calls_itself_idempotent_is_taken_at_its_word(shaky, proxy):
    """And so the tests above can tell once from twice."""
    proxy.cut_when(b"COMMIT", Way.TO_SERVER, deliver=True)
    assert shaky.write(count_up, idempotent=True) == 2


def test_a_commit_that_arrives_long_after_it_was_given_up_changes_nothing(shaky, proxy, monkeypatch):
    """The old session is left alive with its COMMIT on the way, while the client asks, and writes, on a new one."""
    monkeypatch.setattr(shaky, "_end_lost_sessions", lambda _driver: None)
    locks_none = insert(job_outcome).values(
        stream_id=b"s" * 16,
        seq=0,
        ledger_batch=0,
        schema_version=1,
        recorded_us=1,
        tenant_id="t",
        outcome="x",
        leaf=b"",
    )
    tries = []

    def work(connection):
        tries.append(new_id())
        connection.execute(locks_none.values(job_id=tries[-1]))
        if len(tries) == 1:
            connection.connection.driver_connection.answer_seconds = 0.3
            proxy.black_hole(Way.TO_SERVER, new_too=False)

    shaky.write(work)
    assert len(tries) == 2
    proxy.heal()
    time.sleep(0.5)
    assert shaky.read(lambda c: c.execute(select(job_outcome.c.job_id)).scalars().all()) == tries[1:]


def test_an_old_session_cannot_commit_once_its_slot_was_asked_about(database):
    """The heart of it, without any network: whoever asks first decides."""
    with database._connected(database._writers) as (_, old), database._connected(database._writers) as (_, new):
        for arrives_first in (True, False):
            slot = Slot(new_id().hex())
            slot.prepare(old)
            expected = slot.number
            old.execute("BEGIN")
            old.execute("INSERT INTO tenant VALUES (%s, 1)", [str(arrives_first)])
            if arrives_first:
                slot.commit(old)
                slot.number = expected  # as if nobody had heard
            assert slot.was_kept(new) is arrives_first
            if not arrives_first:
                stale = Slot(slot.name, expected)
                with pytest.raises(MarkLost):
                    stale.commit(old)
                old.execute("ROLLBACK")
    assert database.read(names) == ["True"]


def test_asking_waits_for_a_commit_that_is_under_way(database):
    with database._connected(database._writers) as (_, old), database._connected(database._writers) as (_, new):
        slot = Slot(new_id().hex())
        slot.prepare(old)
        old.execute("BEGIN")
        old.execute("UPDATE commit_mark SET mark = mark + 1 WHERE slot = %s::uuid", [slot.name])
        threading.Timer(0.3, lambda: old.execute("COMMIT")).start()
        assert slot.was_kept(new)


def test_asking_twice_gives_the_same_answer(database):
    with database._connected(database._writers) as (_, driver):
        for kept in (True, False):
            slot = Slot(new_id().hex())
            slot.prepare(driver)
            before = slot.number
            if kept:
                driver.execute("BEGIN")
                slot.commit(driver)
            for _ in range(3):
                slot.number = before
                assert slot.was_kept(driver) is kept


def test_idempotent_work_needs_no_mark(database):
    database.write(add("a"), idempotent=True)
    assert database.read(lambda connection: connection.execute(select(commit_mark)).all()) == []
    database.write(add("b"))
    assert len(database.read(lambda connection: connection.execute(select(commit_mark)).all())) == 1


def test_marks_are_few_go_with_their_process_and_are_swept(postgres_url):
    database = PostgresDatabase(postgres_url)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: database.write(add(f"t{n:02}")), range(40)))
    for _ in range(3):
        with pytest.raises(IntegrityError):
            database.write(add("t00"))
    with psycopg.connect(postgres_url, autocommit=True) as look:
        assert 1 <= look.execute("SELECT count(*) FROM commit_mark").fetchone()[0] <= 4
        database.close()
        assert look.execute("SELECT count(*) FROM commit_mark").fetchone()[0] == 0


def test_marks_of_processes_that_died_are_swept_and_others_stay(database):
    def sweep(connection):
        connection.execute(text("INSERT INTO commit_mark VALUES (gen_random_uuid(), 1, 1)"))
        return forget_old_marks(connection, time.time_ns() // 1_000)

    database.write(add("a"))
    assert database.write(sweep) == 1
    assert len(database.read(lambda connection: connection.execute(select(commit_mark)).all())) == 1


def test_a_swept_mark_is_made_anew(database):
    database.write(add("a"))
    with database._connected(database._writers) as (_, driver):
        driver.execute("DELETE FROM commit_mark")
    database.write(add("b"))
    assert database.read(names) == ["a", "b"]


# ------------------------------------------------------------------------------------------------ lost connections


def test_a_connection_cut_in_the_middle_of_the_work_is_made_good(shaky, proxy):
    def work(connection):
        value = count_up(connection)
        if value and not cuts:
            cuts.append(proxy.cut())
        connection.execute(text("SELECT 1"))
        return value

    cuts = []
    assert shaky.write(work) == 1
    assert cuts == [1]
    assert counted(shaky) == 1


def test_idle_connections_that_were_cut_are_replaced(shaky, proxy):
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: shaky.write(count_up), range(12)))
    proxy.cut()
    assert shaky.read(lambda connection: connection.execute(text("SELECT 1")).scalar()) == 1
    assert shaky.write(count_up) == 13


def test_a_server_that_is_away_for_a_while_is_waited_for(shaky, proxy):
    proxy.refuse()
    threading.Timer(0.8, proxy.heal).start()
    assert shaky.write(count_up) == 1
    assert counted(shaky) == 1


def test_a_server_that_stays_away_is_told_of_in_time(proxied_url, proxy):
    database = PostgresDatabase(proxied_url, PostgresTerms(retry_seconds=0.5))
    proxy.refuse()
    began = time.monotonic()
    with pytest.raises(OperationalError) as told:
        database.write(add("a"))
    assert time.monotonic() - began < 3
    assert is_passing(told.value)
    database.close()


def test_a_server_that_falls_silent_is_not_waited_for(proxied_url, proxy):
    database = PostgresDatabase(proxied_url, PostgresTerms(retry_seconds=20.0, statement_seconds=1.0))

    def impatient(connection):
        connection.connection.driver_connection.answer_seconds = 0.5
        if not silent:
            silent.append(1)
            proxy.black_hole()
            threading.Timer(1.5, proxy.heal).start()
        return add("a")(connection)

    silent = []
    began = time.monotonic()
    assert database.write(impatient) == "a"
    assert time.monotonic() - began < 12
    assert database.read(names) == ["a"]
    database.close()


def test_a_session_that_was_killed_is_replaced(database, postgres_url):
    def work(connection):
        if not killed:
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            with psycopg.connect(postgres_url, autocommit=True) as admin:
                killed.append(admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid]).fetchone())
        return add("a")(connection)

    killed = []
    assert database.write(work) == "a"
    assert killed == [(True,)]


def test_the_locks_of_a_lost_session_are_freed_for_the_next_try(shaky, proxy):
    """The proxy keeps the server's half open, as a dead network would, with the row's lock held there."""

    def work(connection):
        value = count_up(connection)
        if not lost:
            lost.append(1)
            connection.connection.driver_connection.answer_seconds = 0.3
            proxy.black_hole(new_too=False)
            connection.execute(text("SELECT 1"))
        return value

    lost = []
    began = time.monotonic()
    assert shaky.write(work) == 1
    assert time.monotonic() - began < 5


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


def test_copied_rows_come_back_as_they_went(database):
    row = an_attempt_row(outcome=Outcome.SUCCEEDED, batch_id=None, started_us=None, trace_id=None, run_us=2**62)
    values = (NOW_US, b"s" * 16, 0, 0, 1, *row.columns(), b"l" * 32)
    database.write(lambda connection: port.bulk_insert(connection, attempt, [values]))
    assert tuple(database.read(lambda connection: connection.execute(select(attempt)).one())) == values
    database.write(lambda connection: port.bulk_insert(connection, attempt, []))


@pytest.mark.parametrize(("column", "number"), [("status_code", 2**31), ("status_code", -(2**40)), ("run_us", 2**63)])
def test_a_number_that_does_not_fit_is_refused_and_not_cut_off(database, column, number):
    row = an_attempt_row(**{column: number})
    values = (NOW_US, b"s" * 16, 0, 0, 1, *row.columns(), b"l" * 32)
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
        rows = [
            (one, "t", b"g" * 16, None, "lane", None, "why", 1, "sent", 1, 1, None, None, None, b"", None, 0, None)
            for one in ids
        ]
        width = len(shard.columns)
        port.bulk_insert(connection, shard, [(*row, *[None] * (width - len(row))) for row in rows])
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
