"""Expand, then contract: older builds go on until nothing of them is seen, and who was killed in between goes on."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import create_engine, event, inspect, text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import NullPool

from broker.database.build_sightings import note_build
from broker.database.history import INSTALLED
from broker.database.migrating import plan, standing, upgrade
from broker.database.schema import VERSION_TABLE, check, require_current
from broker.domain.errors import BrokerError
from broker.rules.schema_fit import SchemaState, session_name

EXPAND = "op.add_column('worker', sa.Column('zone', sa.String(16)))"
CONTRACT = "oldest_served = '8001'\n---op.drop_table('share_limit')"
AFTER = "op.add_column('worker', sa.Column('rack', sa.String(16)))"


HEAD = INSTALLED.build.needed


def revision_of(engine):
    with engine.connect() as connection:
        return tuple(connection.execute(text(f"SELECT version_num, oldest_served FROM {VERSION_TABLE}")).one())


def to_old(engine):
    """The schema of the build before this one."""
    with engine.begin() as connection:
        INSTALLED.run(connection, "0007")


# ----------------------------------------------------------------------------------------------- who works on what


def test_an_older_build_goes_on_until_the_schema_no_longer_serves_it(engine, later):
    upgrade(engine)
    expanded = later(_8001_zone=EXPAND)
    upgrade(engine, expanded)
    assert check(engine).state is SchemaState.AHEAD
    require_current(engine)
    assert upgrade(engine) is SchemaState.AHEAD
    assert standing(engine).endswith("has the later schema 8001, which still serves this program.")
    assert check(engine, expanded).state is SchemaState.CURRENT

    upgrade(engine, later(_8002_contract_shares=CONTRACT), contract=True)

    assert revision_of(engine) == ("8002", "8001")
    assert check(engine).state is SchemaState.NEWER
    for use in (require_current, upgrade, standing, plan):
        with pytest.raises(BrokerError, match=r"newer version .*schema 8002, .* up to \d{4}\): upgrade the program"):
            use(engine)
    require_current(engine, expanded)  # its build is the one that the contract was written for


def test_a_schema_from_before_builds_were_told_apart_is_older(engine):
    to_old(engine)
    assert check(engine).state is SchemaState.OLDER
    assert upgrade(engine) is SchemaState.OLDER
    assert revision_of(engine) == (HEAD, "0007")


def test_an_upgrade_expands_and_a_contract_waits_to_be_asked_for(postgres_engine, later):
    upgrade(postgres_engine)
    history = later(_8001_zone=EXPAND, _8002_contract_shares=CONTRACT)
    assert check(postgres_engine, history).state is SchemaState.OLDER

    upgrade(postgres_engine, history)

    assert revision_of(postgres_engine) == ("8001", "0007")
    assert check(postgres_engine, history).state is SchemaState.CURRENT
    assert standing(postgres_engine, history).endswith("`broker db upgrade --contract` runs 8002.")
    assert upgrade(postgres_engine, history) is SchemaState.CURRENT
    assert inspect(postgres_engine).has_table("share_limit")
    upgrade(postgres_engine, history, contract=True)
    assert revision_of(postgres_engine) == ("8002", "8001")
    assert not inspect(postgres_engine).has_table("share_limit")
    assert standing(postgres_engine, history).endswith("is up to date.")


def test_what_follows_a_contract_waits_for_it_and_says_so(postgres_engine, later):
    upgrade(postgres_engine)
    history = later(_8001_zone=EXPAND, _8002_contract_shares=CONTRACT, _8003_rack=AFTER)
    upgrade(postgres_engine, history)
    with pytest.raises(BrokerError, match=r"^Revision 8002 .* before 8001, and run `broker db upgrade --contract`\.$"):
        standing(postgres_engine, history)
    upgrade(postgres_engine, history, contract=True)
    assert revision_of(postgres_engine) == ("8003", "8001")


def test_an_empty_database_gets_all_at_once(engine, later):
    upgrade(engine, later(_8001_zone=EXPAND, _8002_contract_shares=CONTRACT, _8003_rack=AFTER))
    assert revision_of(engine) == ("8003", "8001")


def test_sqlite_gets_all_at_once(sqlite_engine, later):
    upgrade(sqlite_engine)
    upgrade(sqlite_engine, later(_8001_zone=EXPAND, _8002_contract_shares=CONTRACT))
    assert revision_of(sqlite_engine) == ("8002", "8001")


def test_a_contract_is_refused_while_an_older_build_is_seen(postgres_engine, postgres_url, later):
    upgrade(postgres_engine)
    history = later(_8001_zone=EXPAND, _8002_contract_shares=CONTRACT)
    now_us = time.time_ns() // 1000
    with postgres_engine.begin() as connection:
        note_build(connection, HEAD, now_us - 5_000_000)
        note_build(connection, HEAD, now_us - 8_000_000)  # a slower process of the same build
        note_build(connection, "8001", now_us)
    with pytest.raises(
        BrokerError, match=r"^Revision 8002 .* older than 8001 need, .* a build of schema \d{4}, [5-9] s"
    ):
        upgrade(postgres_engine, history, contract=True)
    assert revision_of(postgres_engine) == ("8001", "0007")  # what only adds was done
    with postgres_engine.begin() as connection:
        connection.execute(text("UPDATE build_seen SET seen_us = seen_us - 700000000 WHERE revision <> '8001'"))
    for name in ("broker api 0123456789abcdef0123", session_name("broker api", HEAD, "0123456789abcdef0123")):
        old = create_engine(postgres_url, poolclass=NullPool, connect_args={"application_name": name})
        with (
            old.connect(),
            pytest.raises(BrokerError, match=r"still sees session \d+ \(broker api( \d{4})?\): replace"),
        ):
            upgrade(postgres_engine, history, contract=True)
    new = session_name("broker api", "8001", "0123456789abcdef0123")
    current = create_engine(postgres_url, poolclass=NullPool, connect_args={"application_name": new})
    with current.connect():
        upgrade(postgres_engine, history, contract=True)
    assert revision_of(postgres_engine) == ("8002", "8001")


def test_a_plan_names_each_statement_and_changes_nothing(engine, later):
    to_old(engine)
    history = later(_8001_zone=EXPAND, _8002_contract_shares=CONTRACT)
    found = plan(engine, history)
    assert [step.revision.number for step in found] == [*INSTALLED.build.revisions[7:], "8001"]
    index = next(words for words in found[2].statements if "ix_ready_batch ON ready (batch_id)" in words)
    assert index.startswith("CREATE INDEX CONCURRENTLY") is (engine.dialect.name == "postgresql")
    assert found[-1].statements == ["ALTER TABLE worker ADD COLUMN zone VARCHAR(16)"]
    last = plan(engine, history, contract=True)[-1]
    assert (last.revision.phase, last.statements) == ("contract", ["DROP TABLE share_limit"])
    assert check(engine).revision == "0007"


# ---------------------------------------------------------------------------------------------- killed and resumed


class Killed(BaseException):
    """As if the process had ended before this statement."""


def changes(engine, until=None):
    """The statements that an upgrade runs which change something; it is killed before that of the number `until`."""
    seen = []

    def count(*call):
        if call[2].lstrip().split()[0] in {"ALTER", "CREATE", "DROP", "INSERT", "UPDATE"}:
            if len(seen) == until:
                raise Killed
            seen.append(call[2])

    return seen, count


def test_killed_before_any_statement_it_goes_on(postgres_engine, later, partitions_of):
    """Each run is killed one statement later than the one before, until one comes through."""
    history = later(_8001_attempts="online_indexes = (OnlineIndex('ix_attempt_lane', 'attempt', ['lane']),)\n---pass")
    to_old(postgres_engine)
    kills = 0
    while True:
        _, count = changes(postgres_engine, until=kills)
        event.listen(postgres_engine, "before_cursor_execute", count)
        try:
            upgrade(postgres_engine, history)
            break
        except Killed:
            kills += 1
        finally:
            event.remove(postgres_engine, "before_cursor_execute", count)
    assert kills > 5
    assert revision_of(postgres_engine) == ("8001", "0007")
    with postgres_engine.connect() as connection:
        question = text(
            "SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
            " WHERE c.relnamespace = quote_ident(current_schema())::regnamespace"
        )
        indexes = dict(map(tuple, connection.execute(question)))
        parts = partitions_of(connection, "attempt")
    assert all(indexes.values())
    assert {"ix_ready_batch", "ix_ready_due", "ix_attempt_lane"} <= set(indexes)
    assert [name for name in parts if f"{name}_lane_idx" not in indexes] == []


def test_an_index_that_a_killed_build_left_is_built_again(postgres_engine):
    to_old(postgres_engine)
    with postgres_engine.connect().execution_options(isolation_level="REPEATABLE READ") as reader:
        reader.execute(text("SELECT count(*) FROM ready"))  # its snapshot holds the build up
        with postgres_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as builder:
            builder.execute(text("SET statement_timeout = '300ms'"))
            with pytest.raises(DatabaseError, match="statement timeout"):
                builder.execute(text("CREATE INDEX CONCURRENTLY ix_ready_batch ON ready (batch_id)"))
    valid = text("SELECT indisvalid FROM pg_index WHERE indexrelid = 'ix_ready_batch'::regclass")
    with postgres_engine.connect() as connection:
        assert connection.execute(valid).scalar_one() is False
    upgrade(postgres_engine)
    with postgres_engine.connect() as connection:
        assert connection.execute(valid).scalar_one() is True


# ---------------------------------------------------------------------------------------------------------- locks


def test_who_holds_a_lock_is_named_and_outwaited(postgres_engine, postgres_url, later):
    upgrade(postgres_engine)
    said = []
    reader = create_engine(postgres_url, poolclass=NullPool, connect_args={"application_name": "a long report"})
    with postgres_engine.connect() as connection:
        table = connection.execute(text("SELECT current_schema() || '.worker'")).scalar_one()
    schema = table.rpartition(".")[0]
    with reader.connect() as holder:
        holder.execute(text(f'SELECT count(*) FROM "{schema}".worker'))

        def report(sentence):
            said.append(sentence)
            holder.rollback()  # the report has ended

        upgrade(postgres_engine, later(_8001_zone=EXPAND), report=report)
    assert "A table is locked by session " in said[0]
    assert "(a long report, postgres, in a transaction since " in said[0]
    assert said[0].endswith("; tried again in 1 s.")
    assert said[1:] == ["8001 What 8001 does: done."]


def test_a_lock_that_is_never_let_go_ends_it_in_a_sentence(postgres_engine, postgres_url, later, monkeypatch):
    from broker.database import migrating
    from broker.database.lock_waits import online_session

    upgrade(postgres_engine)
    history = later(_8001_zone=EXPAND)
    monkeypatch.setattr(migrating, "online_session", lambda *words: online_session(*words, patience_seconds=1.0))
    with postgres_engine.connect() as holder:
        holder.execute(text("SELECT count(*) FROM worker"))
        with pytest.raises(
            BrokerError, match=r"^A table stayed locked for 1 s by session \d+ .*: end that session, and"
        ):
            upgrade(postgres_engine, history)
    assert revision_of(postgres_engine) == (HEAD, "0007")
    upgrade(postgres_engine, history)
    assert revision_of(postgres_engine) == ("8001", "0007")
