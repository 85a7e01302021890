"""The schema's version: brought up to date by `broker db upgrade`, and checked before anything else is read.

The history is the installed package `migrations`, one for SQLite and PostgreSQL. Its version lies in a table of
our own name, so that another program's Alembic history is never taken for ours.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import cache
from importlib.resources import files
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, text
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
    with _opened(engine) as connection:
        if connection is None:
            raise _refusal(engine, SchemaState.FOREIGN, None)
        _begin_alone(connection)
        state, version = _state(connection)
        if state in {SchemaState.NEWER, SchemaState.FOREIGN}:
            raise _refusal(engine, state, version)
        if state is not SchemaState.CURRENT:
            config = _config()
            config.attributes["connection"] = connection
            # Alembic logs its steps at INFO, which people running the broker need not read.
            logging.getLogger("alembic").setLevel(logging.WARNING)
            command.upgrade(config, "head")
        connection.commit()
        return state


def _check(engine: Engine) -> tuple[SchemaState, str | None]:
    path = engine.url.database
    if engine.dialect.name == "sqlite" and _is_plain_path(path) and not Path(path).exists():
        return SchemaState.EMPTY, None
    with _opened(engine) as connection:
        if connection is None:
            return SchemaState.FOREIGN, None
        return _state(connection)
