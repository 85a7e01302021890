"""The schema's version: brought up to date by `broker db upgrade`, and checked before anything else is read.

The history is the installed package `migrations`, one for SQLite and PostgreSQL. Its version lies in a table of
our own name, so that another program's Alembic history is never taken for ours.
"""

from __future__ import annotations

import logging
import re
from enum import StrEnum
from importlib.resources import files
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, text
from sqlalchemy.exc import DatabaseError

from broker.domain.errors import BrokerError

__all__ = ["APPLICATION_ID", "VERSION_TABLE", "SchemaState", "check", "require_current", "upgrade"]

APPLICATION_ID = int.from_bytes(b"IBrk")
"""What `PRAGMA application_id` says in a SQLite file of ours."""

VERSION_TABLE = "broker_schema"

LOCK_KEY = int.from_bytes(b"IBrkmigr")
"""The advisory lock (one to a database) under which PostgreSQL's schema is upgraded."""

SQLITE_CORRUPT, SQLITE_NOTADB = 11, 26


class SchemaState(StrEnum):
    """What a database holds, seen from this program."""

    EMPTY = "empty"
    CURRENT = "current"
    OLDER = "older"
    NEWER = "newer"
    FOREIGN = "foreign"  # another program's tables, or no database at all


def check(engine: Engine) -> SchemaState:
    """What the database holds; reads only, and doesn't create a SQLite file that isn't there.

    Raises BrokerError where the database can't be opened.
    """
    return _check(engine)[0]


def require_current(engine: Engine) -> None:
    """Return where the database has the schema of this program; raise BrokerError, in one sentence, where not."""
    state, version = _check(engine)
    if state is not SchemaState.CURRENT:
        raise _refusal(engine, state, version)


def upgrade(engine: Engine) -> SchemaState:
    """Bring an empty or older database up to date, wholly or not at all; returns the state it was found in.

    Raises BrokerError where the database is newer, is another program's, or can't be opened. Upgrades of one
    database that run at once wait for each other; the later ones find it current.
    """
    state, version = _check(engine)
    if state is SchemaState.CURRENT:
        return state
    if state not in {SchemaState.EMPTY, SchemaState.OLDER}:
        raise _refusal(engine, state, version)
    try:
        connection = _open_alone(engine)
    except DatabaseError as error:
        raise _failure(engine, "opened", error) from error
    with connection:
        state, version = _state(connection)  # again: another process may have upgraded it while we waited
        if state in {SchemaState.EMPTY, SchemaState.OLDER}:
            try:
                _run_migrations(connection)
            except DatabaseError as error:
                raise _failure(engine, "upgraded", error) from error
            connection.commit()
        elif state is not SchemaState.CURRENT:
            raise _refusal(engine, state, version)
    return state


def _open_alone(engine: Engine) -> Connection:
    """A connection inside a transaction that holds off every other upgrade."""
    connection = engine.connect()
    try:
        if connection.dialect.name == "postgresql":
            # A later isolation level would show, after the wait, the schema of before it.
            connection = connection.execution_options(isolation_level="READ COMMITTED")
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
        else:
            connection.begin()
            # The driver opens no transaction before DDL, but keeps to one that is open; the engine may have opened it.
            if not getattr(connection.connection.driver_connection, "in_transaction", False):
                connection.exec_driver_sql("BEGIN IMMEDIATE")
    except BaseException:
        connection.close()
        raise
    return connection


def _run_migrations(connection: Connection) -> None:
    # Alembic logs its steps, and from its import on, at INFO; the people who run the broker need not read that.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from alembic import command  # noqa: PLC0415 (after its logger is quiet, and only where there is work for it)
    from alembic.config import Config  # noqa: PLC0415 (as above)

    config = Config()
    # The configuration's parser takes % for the start of a substitution.
    config.set_main_option("script_location", str(files("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _check(engine: Engine) -> tuple[SchemaState, str | None]:
    if _is_missing_file(engine):
        return SchemaState.EMPTY, None
    try:
        with engine.connect() as connection:
            return _state(connection)
    except DatabaseError as error:
        if getattr(error.orig, "sqlite_errorcode", None) in {SQLITE_CORRUPT, SQLITE_NOTADB}:
            return SchemaState.FOREIGN, None
        raise _failure(engine, "opened", error) from error


def _is_missing_file(engine: Engine) -> bool:
    """Whether to connect would create the SQLite file; a `file:` URI says for itself what it does."""
    path = engine.url.database
    if engine.dialect.name != "sqlite" or not path or path == ":memory:" or path.startswith("file:"):
        return False
    return not Path(path).exists()


def _state(connection: Connection) -> tuple[SchemaState, str | None]:
    """The state, with the version that the database names."""
    tables = _tables(connection)
    if connection.dialect.name == "sqlite":
        application = connection.exec_driver_sql("PRAGMA application_id").scalar_one()
        if application != (APPLICATION_ID if tables else 0):
            return SchemaState.FOREIGN, None
    if not tables:
        return SchemaState.EMPTY, None
    if VERSION_TABLE not in tables:
        return SchemaState.FOREIGN, None
    versions = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalars().all()  # noqa: S608 (a constant)
    version = versions[0] if len(versions) == 1 else ""
    known = _known_versions()
    if version == known[-1]:
        return SchemaState.CURRENT, version
    if version in known:
        return SchemaState.OLDER, version
    # Only a later program can have written a later number; nobody of ours writes anything else.
    newer = version.isdecimal() and version > known[-1]
    return (SchemaState.NEWER if newer else SchemaState.FOREIGN), version


def _tables(connection: Connection) -> set[str]:
    """The tables of the schema we work in, without those that belong to the database's own extensions."""
    if connection.dialect.name == "sqlite":
        names = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT GLOB 'sqlite_*'"
    else:
        names = (
            "SELECT relname FROM pg_class c WHERE relkind IN ('r', 'p')"
            " AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema()) AND NOT EXISTS ("
            "SELECT FROM pg_depend WHERE classid = CAST('pg_class' AS regclass) AND objid = c.oid AND deptype = 'e')"
        )
    return set(connection.execute(text(names)).scalars())


def _known_versions() -> list[str]:
    """The versions of the installed history, oldest first: the numbers that its files' names begin with."""
    names = (entry.name for entry in files("migrations").joinpath("versions").iterdir())
    return sorted(name[:4] for name in names if re.fullmatch(r"\d{4}_\w+\.py", name))


def _refusal(engine: Engine, state: SchemaState, version: str | None) -> BrokerError:
    place = _place(engine)
    known = _known_versions()[-1]
    match state:
        case SchemaState.NEWER:
            return BrokerError(
                f"The database at {place} was written by a newer version of Inference Broker"
                f" (schema {version}, this program knows up to {known}): upgrade the program."
            )
        case SchemaState.OLDER:
            return BrokerError(
                f"The database at {place} was written by an older version of Inference Broker"
                f" (schema {version}, this program needs {known}): run `broker db upgrade`."
            )
        case SchemaState.EMPTY:
            return BrokerError(f"The database at {place} is empty: run `broker db upgrade`.")
        case _:
            return BrokerError(f"{place} is not an Inference Broker database.")


def _failure(engine: Engine, deed: str, error: DatabaseError) -> BrokerError:
    reason = next(iter(str(error.orig).strip().splitlines()), "no reason given")
    return BrokerError(f"The database at {_place(engine)} can't be {deed}: {reason.rstrip('.')}.")


def _place(engine: Engine) -> str:
    """Where the database is, in words that hold neither a password nor the URL's options, which may hold one."""
    url = engine.url
    if engine.dialect.name == "sqlite":
        return url.database or ":memory:"
    bare = URL.create(url.get_backend_name(), url.username, host=url.host, port=url.port, database=url.database)
    return bare.render_as_string()
