"""The database that a command looks at or upgrades, without asking first what it holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine

from broker.bootstrap.data_folder import DATABASE_FILE
from broker.database.drivers.sqlite.database import open_read_only

__all__ = ["opened"]


@contextmanager
def opened(data: Path, database_url: str | None) -> Iterator[Engine]:
    """PostgreSQL's where its URL is given, else the data folder's, which can only be read through it."""
    if database_url:
        # Only here: a data folder is looked at without PostgreSQL's driver.
        from broker.database.drivers.postgres.database import PostgresDatabase, PostgresTerms  # noqa: PLC0415 (as said)

        database = PostgresDatabase(database_url, PostgresTerms(name="broker db"))
        try:
            yield database.engine
        finally:
            database.close()
        return
    engine = open_read_only(data / DATABASE_FILE)
    try:
        yield engine
    finally:
        engine.dispose()
