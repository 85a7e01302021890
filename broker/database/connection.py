"""The port to the database: units of work that are committed whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Protocol, TypeVar

from sqlalchemy import Column, Connection, Engine, Table

from broker.database.copying import copy_rows, update_rows

__all__ = ["Connection", "Database", "bulk_insert", "bulk_update"]

T = TypeVar("T")


class Database(Protocol):
    """Drivers: `broker.database.sqlite` and `broker.database.postgres`."""

    @property
    def engine(self) -> Engine:
        """For migrations only."""

    def write(self, work: Callable[[Connection], T], *, durable: bool = True, idempotent: bool = False) -> T:
        """What `work` returned, once its changes are durable. Whatever it raises is raised here, and nothing is kept.

        Without `durable` they are there for all who ask, and for whoever follows after this process is killed,
        but a power cut may take the newest of them back: never without also taking back all that came after.
        For what merely follows from rows that are durable, and would be found out again.

        `work` may share a commit with others' (group commit) and run on another thread; where a commit fails, a
        connection is lost or another process was faster, it may run again, in a transaction of its own. So it
        changes nothing but the database. It is kept once, even where the answer to the commit was lost; work that
        may as well be kept twice says so with `idempotent`, and is spared what it costs to find out.
        """

    def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` returned, from one consistent snapshot. Never waits for writers."""

    def close(self) -> None:
        """Finish what was begun, then let go of the database."""


# Few sizes, so that every statement stays prepared: to parse one of many rows takes as long as to run it. Up to the
# least of them each number of rows is a size, since to run one statement more takes longer than ten rows do.
_ROWS_AT_ONCE = (256, 64, 16)


def bulk_insert(connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows, each with a value for every column in the table's order.

    On SQLite the values go to the driver as they are (ids are bytes there anyway), in as few statements as it
    takes: the driver lets go of the interpreter at each, and with other threads at work each time may cost a
    switch interval to come back.
    """
    if connection.dialect.name == "sqlite":
        columns_count = len(table.columns)
        for part in _parts(rows):
            statement = _insert_text(table.name, len(part), columns_count)
            connection.exec_driver_sql(statement, tuple(chain.from_iterable(part)))
    elif rows:
        copy_rows(connection, table, rows)


def bulk_update(connection: Connection, key: Column[Any], columns: Sequence[Column[Any]], rows: Sequence[Any]) -> None:
    """Set `columns` where `key` matches; each row is the key's value, then one per column. As for `bulk_insert`."""
    table = key.table
    if connection.dialect.name == "sqlite":
        names = tuple(column.name for column in columns)
        for part in _parts(rows):
            statement = _update_text(table.name, key.name, names, len(part))
            connection.exec_driver_sql(statement, tuple(chain.from_iterable(part)))
    elif rows:
        update_rows(connection, key, columns, rows)


def _parts(rows: Sequence[tuple[Any, ...]]) -> Iterator[Sequence[tuple[Any, ...]]]:
    start = 0
    for size in _ROWS_AT_ONCE:
        while len(rows) - start >= size:
            yield rows[start : start + size]
            start += size
    if start < len(rows):
        yield rows[start:]


@lru_cache(maxsize=256)
def _insert_text(table: str, rows_count: int, columns_count: int) -> str:
    return f"INSERT INTO {table} VALUES {_marks(rows_count, columns_count)}"  # noqa: S608 (names of our own tables)


@lru_cache(maxsize=64)
def _update_text(table: str, key: str, columns: tuple[str, ...], rows_count: int) -> str:
    changes = ", ".join(f"{column} = new.column{place}" for place, column in enumerate(columns, start=2))
    values = f"(VALUES {_marks(rows_count, len(columns) + 1)}) AS new"
    return f"UPDATE {table} SET {changes} FROM {values} WHERE {table}.{key} = new.column1"  # noqa: S608 (as above)


def _marks(rows_count: int, columns_count: int) -> str:
    row = f"({', '.join('?' * columns_count)})"
    return ", ".join([row] * rows_count)
