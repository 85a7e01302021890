"""The port to the database: units of work that are committed whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar

from sqlalchemy import Column, Connection, Engine, Table, Text

from broker.database.types import ProducersName, without_nul

__all__ = ["ROW_WRITER", "Connection", "Database", "RowWriter", "bulk_insert", "bulk_update"]

T = TypeVar("T")


class Database(Protocol):
    """Drivers: `broker.database.drivers.sqlite` and `broker.database.drivers.postgres`."""

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


ROW_WRITER = "broker_row_writer"
"""The execution option that each driver's engine carries its `RowWriter` in."""


class RowWriter(Protocol):
    """A driver's quickest way for many rows. An empty sequence is never passed."""

    def insert(self, connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
        """See `bulk_insert`."""

    def update(
        self, connection: Connection, key: Column[Any], columns: Sequence[Column[Any]], rows: Sequence[tuple[Any, ...]]
    ) -> None:
        """See `bulk_update`."""


def bulk_insert(connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
    """Insert rows, each with a value for every column in the table's order.

    The one door for what others wrote, and the same on both databases: free text is kept `without_nul`, a producer's
    name with NUL is a ValueError. Other text is our own, or was checked where it came in.
    """
    if rows:
        _row_writer(connection).insert(connection, table, _storable(table, rows))


def bulk_update(
    connection: Connection, key: Column[Any], columns: Sequence[Column[Any]], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Set `columns` where `key` matches; each row is the key's value, then one per column."""
    if rows:
        _row_writer(connection).update(connection, key, columns, rows)


class _Words(NamedTuple):
    """Which of a table's columns hold what others wrote, by index."""

    texts: list[int]
    names: list[int]


@lru_cache(maxsize=64)
def _words_of(table: Table) -> _Words:
    kinds = [column.type for column in table.columns]
    return _Words(
        [index for index, kind in enumerate(kinds) if isinstance(kind, Text)],
        [index for index, kind in enumerate(kinds) if isinstance(kind, ProducersName)],
    )


def _storable(table: Table, rows: Sequence[tuple[Any, ...]]) -> Sequence[tuple[Any, ...]]:
    words = _words_of(table)
    for index in words.names:
        if "\0" in "".join([row[index] or "" for row in rows]):
            raise ValueError(f"{table.name}.{list(table.columns)[index].name} holds the character NUL")
    for index in words.texts:
        if "\0" in "".join([row[index] or "" for row in rows]):  # seldom: a row is copied only then
            rows = [(*row[:index], row[index] and without_nul(row[index]), *row[index + 1 :]) for row in rows]
    return rows


def _row_writer(connection: Connection) -> RowWriter:
    writer: RowWriter = connection.get_execution_options()[ROW_WRITER]
    return writer
