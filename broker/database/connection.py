"""The port to the database: units of work that are committed whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Engine, Table, insert

__all__ = ["Connection", "Database", "bulk_insert"]

T = TypeVar("T")


class Database(Protocol):
    """Drivers: `broker.database.sqlite`; PostgreSQL follows with the separate roles."""

    @property
    def engine(self) -> Engine:
        """For migrations only."""

    def write(self, work: Callable[[Connection], T]) -> T:
        """What `work` returned, once its changes are durable. Whatever it raises is raised here, and nothing is kept.

        `work` may share a commit with others' (group commit); it must touch nothing but the connection, as
        it runs on another thread.
        """

    def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` returned, from one consistent snapshot. Never waits for writers."""

    def close(self) -> None:
        """Finish what was begun, then let go of the database."""


_sqlite_inserts: dict[str, str] = {}


def bulk_insert(connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows, each with a value for every column in the table's order.

    On SQLite the rows go to the driver as they are, several times faster than through typed parameters; ids
    are bytes there anyway.
    """
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        statement = _sqlite_inserts.get(table.name)
        if statement is None:
            marks = ", ".join("?" * len(table.columns))
            statement = _sqlite_inserts[table.name] = f"INSERT INTO {table.name} VALUES ({marks})"  # noqa: S608 (names of our own tables)
        connection.exec_driver_sql(statement, list(rows))
    else:
        names = [column.name for column in table.columns]
        connection.execute(insert(table), [dict(zip(names, row, strict=True)) for row in rows])
