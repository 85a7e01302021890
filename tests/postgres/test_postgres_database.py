"""Exactly once, whatever becomes of the connection; and nothing waits for ever."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError

from broker.database.connection import bulk_insert
from broker.database.drivers.postgres.database import PostgresDatabase, PostgresTerms, open_postgres
from broker.database.drivers.postgres.marks import CommitMark, MarkLost, forget_old_marks
from broker.database.failures import is_passing
from broker.database.jobs import load_shard_jobs
from broker.database.tables import commit_mark, payload, tenant
from broker.domain.errors import BrokerError
from broker.domain.ids import ids_of_span, new_id, new_span
from broker.domain.shard import ShardSpan
from broker.ledger.tables import job_outcome
from tests.proxy import Way


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
            slot = CommitMark(new_id().hex())
            slot.prepare(old)
            expected = slot.number
            old.execute("BEGIN")
            old.execute("INSERT INTO tenant VALUES (%s, 1)", [str(arrives_first)])
            if arrives_first:
                slot.commit(old)
                slot.number = expected  # as if nobody had heard
            assert slot.was_kept(new) is arrives_first
            if not arrives_first:
                stale = CommitMark(slot.name, expected)
                with pytest.raises(MarkLost):
                    stale.commit(old)
                old.execute("ROLLBACK")
    assert database.read(names) == ["True"]


def test_asking_waits_for_a_commit_that_is_under_way(database):
    with database._connected(database._writers) as (_, old), database._connected(database._writers) as (_, new):
        slot = CommitMark(new_id().hex())
        slot.prepare(old)
        old.execute("BEGIN")
        old.execute("UPDATE commit_mark SET mark = mark + 1 WHERE slot = %s::uuid", [slot.name])
        threading.Timer(0.3, lambda: old.execute("COMMIT")).start()
        assert slot.was_kept(new)


def test_asking_twice_gives_the_same_answer(database):
    with database._connected(database._writers) as (_, driver):
        for kept in (True, False):
            slot = CommitMark(new_id().hex())
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


def test_a_server_that_is_only_starting_is_waited_for_where_asked(postgres_url, proxied_url, proxy):
    proxy.refuse()
    with pytest.raises(BrokerError, match="can't be opened"):
        open_postgres(proxied_url)
    threading.Timer(0.5, proxy.heal).start()
    database = open_postgres(proxied_url, wait_seconds=10.0)
    assert database.write(add("a")) == "a"
    database.close()
    began = time.monotonic()
    with pytest.raises(BrokerError, match="can't be opened"):
        open_postgres(proxied_url.replace("broker_test", "nobodys"), wait_seconds=0.3)
    assert time.monotonic() - began < 3


def test_payloads_come_in_the_order_of_their_ids_where_the_table_holds_them_in_another(database):
    first, count = new_span(), 200
    ids = ids_of_span(first, count)
    rows = [(job_id, b"{}", None, bytes(16)) for job_id in reversed(ids)]
    database.write(lambda connection: bulk_insert(connection, payload, rows))
    span = ShardSpan(0, first, count, 1, 0, 0, False, 100, 0)
    found = database.read(lambda connection: load_shard_jobs(connection, [span]))
    assert [job.job_id for job in found[span]] == ids
