"""The port to the database: units of work that are committed whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
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

        `work` may share a commit with others' (group commit) and run on another thread; where a commit fails
        it may run again, in a transaction of its own. So it changes nothing but the database.
        """

    def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` returned, from one consistent snapshot. Never waits for writers."""

    def close(self) -> None:
        """Finish what was begun, then let go of the database."""


_SQLITE_PARAMETERS_MAX = 30_000
_ROWS_PER_STATEMENT = (512, 128, 32, 8, 1)

_sqlite_inserts: dict[tuple[str, int], str] = {}


def bulk_insert(connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows, each with a value for every column in the table's order.

    On SQLite the values go to the driver as they are (ids are bytes there anyway), many rows to a statement:
    the driver lets go of the interpreter once per statement, and with other threads at work each time may
    cost a switch interval to come back. Few sizes, so that the driver's cache knows every statement.
    """
    if connection.dialect.name != "sqlite":
        names = [column.name for column in table.columns]
        if rows:
            connection.execute(insert(table), [dict(zip(names, row, strict=True)) for row in rows])
        return
    columns_count = len(table.columns)
    start = 0
    for size in _ROWS_PER_STATEMENT:
        if size > 1 and size * columns_count > _SQLITE_PARAMETERS_MAX:
            continue
        while len(rows) - start >= size:
            values = tuple(chain.from_iterable(rows[start : start + size]))
            connection.exec_driver_sql(_sqlite_insert(table, size), values)
            start += size


def _sqlite_insert(table: Table, rows_count: int) -> str:
    statement = _sqlite_inserts.get((table.name, rows_count))
    if statement is None:
        marks = f"({', '.join('?' * len(table.columns))})"
        every = ", ".join([marks] * rows_count)
        statement = f"INSERT INTO {table.name} VALUES {every}"  # noqa: S608 (names of our own tables)
        _sqlite_inserts[table.name, rows_count] = statement
    return statement
