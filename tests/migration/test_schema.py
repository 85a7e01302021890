"""One history for two databases: it ends where the tables say, it knows its own, and it keeps the ledger as written."""

from __future__ import annotations

import logging
import re
import runpy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, create_engine, event, inspect, make_url, select, text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import NullPool

import broker.database.tables  # noqa: F401 (fills the metadata)
from broker.database.drivers.sqlite.database import SqliteDatabase
from broker.database.migrating import upgrade
from broker.database.schema import APPLICATION_ID, VERSION_TABLE, check, require_current
from broker.database.types import metadata
from broker.domain.errors import BrokerError
from broker.ledger import tables
from broker.rules.schema_fit import SchemaState

ONLY_POSTGRESQL = {"ix_attempt_tenant"}  # SQLite has one tenant
ONLY_MIGRATED = {f"ix_{table.name}_recorded" for table in tables.PARTITIONED}
"""The block range indexes: like partitions and triggers, PostgreSQL's alone, and made by the migration alone."""


@pytest.fixture
def described(partitions_of: Any) -> Callable[[Engine], dict[str, Any]]:
    """All that a database says about its tables, but for partitions, the version and what only migrations make."""
    return lambda engine: describe(engine, partitions_of)


def describe(engine: Engine, partitions_of: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with engine.connect() as connection:
        on_postgres = connection.dialect.name == "postgresql"
        hidden = {VERSION_TABLE}
        if on_postgres:
            hidden.update(name for table in tables.PARTITIONED for name in partitions_of(connection, table.name))
        inspector = inspect(connection)
        for name in set(inspector.get_table_names()) - hidden:
            keys = inspector.get_foreign_keys(name)
            indexes = [index for index in inspector.get_indexes(name) if index["name"] not in ONLY_MIGRATED]
            for index in indexes:  # the clause of a partial index is an object that equals only itself
                index["dialect_options"] = {key: str(value) for key, value in index.get("dialect_options", {}).items()}
            found[name] = {
                "columns": [{**column, "type": repr(column["type"])} for column in inspector.get_columns(name)],
                "primary key": inspector.get_pk_constraint(name),
                "uniques": sorted(inspector.get_unique_constraints(name), key=lambda unique: str(unique["name"])),
                "indexes": sorted(repr(sorted(index.items())) for index in indexes),
                "checks": inspector.get_check_constraints(name),
                "foreign keys": sorted(({**key, "referred_schema": None} for key in keys), key=repr),
                "partitioned by": connection.execute(
                    text("SELECT pg_get_partkeydef(to_regclass(:name))"), {"name": name}
                ).scalar()
                if on_postgres
                else None,
            }
    return found


# ------------------------------------------------------------------------------------------------------- equality


def test_the_history_ends_where_the_tables_say(engine, described):
    upgrade(engine)
    migrated = described(engine)
    with engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            table.drop(connection)
        metadata.create_all(connection)

    fresh = described(engine)

    assert set(fresh) == set(metadata.tables)
    for name, description in fresh.items():
        assert migrated[name] == description, name
    assert set(migrated) == set(fresh)


def test_sqlite_is_told_the_same_words(sqlite_engine, tmp_path):
    fresh = create_engine(f"sqlite:///{tmp_path / 'fresh.db'}", poolclass=NullPool)
    metadata.create_all(fresh)
    upgrade(sqlite_engine)

    def words(engine: Engine) -> set[str]:
        with engine.connect() as connection:
            rows = connection.execute(
                text("SELECT sql FROM sqlite_master WHERE type IN ('table', 'index') AND name <> :version"),
                {"version": VERSION_TABLE},
            )
            # A table's constraints may come in another order than they were written down in, and a column that was
            # added later in the line of the one before.
            return {" ".join(sorted(re.split(r",?\s*\n\s*|,\s+", sql.strip()))) for (sql,) in rows if sql}

    assert words(sqlite_engine) == words(fresh)


def test_alembic_finds_nothing_to_do(engine, partitions_of):
    upgrade(engine)
    with engine.connect() as connection:
        children = set()
        if connection.dialect.name == "postgresql":
            children = {name for table in tables.PARTITIONED for name in partitions_of(connection, table.name)}

        def include(_item: object, name: str | None, _kind: str, reflected: bool, _other: object) -> bool:
            if name in ONLY_POSTGRESQL and connection.dialect.name != "postgresql":
                return False
            return not (reflected and name in children | ONLY_MIGRATED)

        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "include_object": include,
                "version_table": VERSION_TABLE,
            },
        )
        assert compare_metadata(context, metadata) == []


def test_files_are_numbered_as_their_history_runs():
    history = sorted(Path(str(files("migrations").joinpath("versions"))).glob("[0-9]*.py"))
    assert [path.name[:4] for path in history] == [f"{number:04}" for number in range(1, len(history) + 1)]
    for number, path in enumerate(history):
        found = runpy.run_path(str(path))
        assert (found["revision"], found["down_revision"]) == (path.name[:4], f"{number:04}" if number else None)


# --------------------------------------------------------------------------------------------------------- states


def test_upgrade_is_idempotent_and_quiet(engine, described, caplog, capsys):
    caplog.set_level(logging.INFO)
    assert check(engine).state is SchemaState.EMPTY
    assert upgrade(engine) is SchemaState.EMPTY
    first = described(engine)
    assert upgrade(engine) is SchemaState.CURRENT
    assert described(engine) == first
    assert check(engine).state is SchemaState.CURRENT
    require_current(engine)
    assert [record for record in caplog.records if record.name.startswith("alembic")] == []
    assert capsys.readouterr() == ("", "")


def test_upgrades_at_once_wait_for_each_other(engine):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: upgrade(engine), range(4)))
    assert found.count(SchemaState.EMPTY) == 1
    assert found.count(SchemaState.CURRENT) == 3
    assert check(engine).state is SchemaState.CURRENT


def test_an_upgrade_that_fails_leaves_nothing(engine, monkeypatch):
    @event.listens_for(engine, "before_cursor_execute")
    def fail_late(*call: Any) -> None:
        if call[2].startswith("CREATE TRIGGER price_no"):
            raise DatabaseError(call[2], None, Exception("the disk fell off"))

    with pytest.raises(BrokerError, match=r"^The database at .* can't be upgraded: the disk fell off\.$"):
        upgrade(engine)
    event.remove(engine, "before_cursor_execute", fail_late)
    assert check(engine).state is SchemaState.EMPTY
    assert inspect(engine).get_table_names() == []
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA application_id").scalar_one() == 0


def test_the_brokers_own_engine_upgrades(tmp_path):
    database = SqliteDatabase(tmp_path / "broker.db")
    try:
        assert upgrade(database.engine) is SchemaState.EMPTY
        assert database.write(lambda connection: connection.execute(select(tables.attempt)).all()) == []
        require_current(database.engine)
    finally:
        database.close()
    assert (tmp_path / "broker.db").read_bytes()[68:72] == b"IBrk"


def set_version(engine: Engine, version: str, oldest_served: str = "9007") -> None:
    with engine.begin() as connection:
        statement = f"UPDATE {VERSION_TABLE} SET version_num = :version, oldest_served = :oldest_served"
        connection.execute(text(statement), {"version": version, "oldest_served": oldest_served})


def test_a_newer_database_is_refused(engine):
    upgrade(engine)
    set_version(engine, "9007")
    assert check(engine).state is SchemaState.NEWER
    for use in (require_current, upgrade):
        with pytest.raises(BrokerError) as refusal:
            use(engine)
        assert re.fullmatch(
            r"The database at \S+ was written by a newer version of Inference Broker"
            r" \(schema 9007, this program knows up to \d{4}\): upgrade the program\.",
            str(refusal.value),
        )


def test_an_older_database_asks_for_an_upgrade(engine, later):
    upgrade(engine)
    history = later(_8001_next="pass")
    set_version(engine, "0001")
    assert check(engine, history).state is SchemaState.OLDER
    with pytest.raises(
        BrokerError, match=r"^The database at .* older .*schema 0001, .* 8001\): run `broker db upgrade`"
    ):
        require_current(engine, history)


def test_a_database_of_the_first_version_is_brought_up_to_date(engine, described, monkeypatch):
    from alembic import command

    to_head = command.upgrade
    monkeypatch.setattr(command, "upgrade", lambda config, _head: to_head(config, "0001"))
    upgrade(engine)
    monkeypatch.undo()
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO tenant (tenant_id, created_us) VALUES ('kept', 1)"))
    assert check(engine).state is SchemaState.OLDER
    assert upgrade(engine) is SchemaState.OLDER
    assert check(engine).state is SchemaState.CURRENT
    assert set(described(engine)) == set(metadata.tables)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT tenant_id FROM tenant")).scalars().all() == ["kept"]


def test_an_empty_database_asks_for_an_upgrade(engine):
    with pytest.raises(BrokerError, match=r"^The database at \S+ is empty: run `broker db upgrade`\.$"):
        require_current(engine)
    if engine.dialect.name == "sqlite":
        assert not Path(str(engine.url.database)).exists()


def refused_as_foreign(engine: Engine) -> None:
    assert check(engine).state is SchemaState.FOREIGN
    for use in (require_current, upgrade):
        with pytest.raises(BrokerError, match=r"^\S+ is not an Inference Broker database\.$"):
            use(engine)


def test_another_programs_tables_are_left_alone(engine):
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('0001')"))
    refused_as_foreign(engine)
    assert inspect(engine).get_table_names() == ["alembic_version"]


def test_a_version_that_is_none_of_ours_is_foreign(engine):
    upgrade(engine)
    set_version(engine, "a81f3")
    refused_as_foreign(engine)


@pytest.mark.parametrize("content", [b"hi", b"not a database\n" * 400, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_left_alone(sqlite_engine, content):
    path = Path(str(sqlite_engine.url.database))
    path.write_bytes(content)
    refused_as_foreign(sqlite_engine)
    assert path.read_bytes() == content


def test_another_programs_application_id_is_foreign(sqlite_engine):
    upgrade(sqlite_engine)
    with sqlite_engine.begin() as connection:
        assert connection.exec_driver_sql("PRAGMA application_id").scalar_one() == APPLICATION_ID
        connection.exec_driver_sql("PRAGMA application_id = 42")
    refused_as_foreign(sqlite_engine)


def test_no_message_holds_a_password(postgres_url):
    url = make_url(postgres_url).set(password="hush-1", port=1).update_query_dict({"password": "hush-2"})
    away = create_engine(url, poolclass=NullPool)
    for use in (check, require_current, upgrade):
        with pytest.raises(BrokerError, match=r"^The database at postgresql://\S+ can't be opened: ") as refusal:
            use(away)
        assert "hush" not in str(refusal.value)
        assert "\n" not in str(refusal.value)
