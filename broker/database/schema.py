"""The schema's version, checked before anything else of a database is read.

It lies in a table of our own name, so that another program's Alembic history is never taken for ours, with the oldest
build that the schema still serves; see `broker.rules.schema_fit`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from sqlalchemy import URL, Connection, Engine, text
from sqlalchemy.exc import DatabaseError

from broker.database.history import INSTALLED, History
from broker.domain.errors import BrokerError
from broker.rules.schema_fit import Build, SchemaState, judge

__all__ = [
    "APPLICATION_ID",
    "VERSION_TABLE",
    "Schema",
    "check",
    "failure",
    "look",
    "place",
    "refusal",
    "require_current",
]

APPLICATION_ID = int.from_bytes(b"IBrk")
"""What `PRAGMA application_id` says in a SQLite file of ours."""

VERSION_TABLE = "broker_schema"

SQLITE_CORRUPT, SQLITE_NOTADB = 11, 26


class Schema(NamedTuple):
    """The state, with the revision that the database names, if it names any."""

    state: SchemaState
    revision: str | None = None


def check(engine: Engine, history: History = INSTALLED) -> Schema:
    """What the database holds; reads only, and doesn't create a SQLite file that isn't there.

    Raises BrokerError where the database can't be opened.
    """
    if _is_missing_file(engine):
        return Schema(SchemaState.EMPTY)
    try:
        with engine.connect() as connection:
            return look(connection, history.build)
    except DatabaseError as error:
        if getattr(error.orig, "sqlite_errorcode", None) in {SQLITE_CORRUPT, SQLITE_NOTADB}:
            return Schema(SchemaState.FOREIGN)
        raise failure(engine, "opened", error) from error


def require_current(engine: Engine, history: History = INSTALLED) -> None:
    """Return where the database's schema serves this program; raise BrokerError, in one sentence, where not."""
    found = check(engine, history)
    if found.state not in {SchemaState.CURRENT, SchemaState.AHEAD}:
        raise refusal(engine, found, history.build)


def look(connection: Connection, build: Build) -> Schema:
    """As `check`, on a connection that is open."""
    tables = _tables(connection)
    if connection.dialect.name == "sqlite":
        application = connection.exec_driver_sql("PRAGMA application_id").scalar_one()
        if application != (APPLICATION_ID if tables else 0):
            return Schema(SchemaState.FOREIGN)
    if not tables:
        return Schema(SchemaState.EMPTY)
    if VERSION_TABLE not in tables:
        return Schema(SchemaState.FOREIGN)
    # All columns, for which there are depends on the version. One from before builds were told apart serves its own.
    rows = connection.execute(text(f"SELECT * FROM {VERSION_TABLE}")).mappings().all()  # noqa: S608 (a constant)
    if len(rows) != 1:
        return Schema(SchemaState.FOREIGN)
    revision = str(rows[0]["version_num"])
    return Schema(judge(build, revision, str(rows[0].get("oldest_served", revision))), revision)


def refusal(engine: Engine, found: Schema, build: Build) -> BrokerError:
    """Why this program doesn't work on such a database, and what to do."""
    where = place(engine)
    match found.state:
        case SchemaState.NEWER:
            return BrokerError(
                f"The database at {where} was written by a newer version of Inference Broker"
                f" (schema {found.revision}, this program knows up to {build.revisions[-1]}): upgrade the program."
            )
        case SchemaState.OLDER:
            return BrokerError(
                f"The database at {where} was written by an older version of Inference Broker"
                f" (schema {found.revision}, this program needs {build.needed}): run `broker db upgrade`."
            )
        case SchemaState.EMPTY:
            return BrokerError(f"The database at {where} is empty: run `broker db upgrade`.")
        case _:
            return BrokerError(f"{where} is not an Inference Broker database.")


def failure(engine: Engine, deed: str, error: DatabaseError) -> BrokerError:
    """What the database says against being opened or upgraded, in one sentence."""
    reason = next(iter(str(error.orig).strip().splitlines()), "no reason given")
    return BrokerError(f"The database at {place(engine)} can't be {deed}: {reason.rstrip('.')}.")


def place(engine: Engine) -> str:
    """Where the database is, in words that hold neither a password nor the URL's options, which may hold one."""
    url = engine.url
    if engine.dialect.name == "sqlite":
        return url.database or ":memory:"
    bare = URL.create(url.get_backend_name(), url.username, host=url.host, port=url.port, database=url.database)
    return bare.render_as_string()


def _is_missing_file(engine: Engine) -> bool:
    """Whether to connect would create the SQLite file; a `file:` URI says for itself what it does."""
    path = engine.url.database
    if engine.dialect.name != "sqlite" or not path or path == ":memory:" or path.startswith("file:"):
        return False
    return not Path(path).exists()


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
