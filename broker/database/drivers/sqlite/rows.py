"""Many rows at once on SQLite: in as few statements as it takes.

The driver lets go of the interpreter at each statement, and with other threads at work each time may cost a switch
interval to come back. Ids are bytes there anyway, so values go to the driver as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from sqlalchemy import Column, Connection, Table

__all__ = ["TextRows"]

# Few sizes, so that every statement stays prepared: to parse one of many rows takes as long as to run it. Up to the
# least of them each number of rows is a size, since to run one statement more takes longer than ten rows do.
_ROWS_AT_ONCE = (256, 64, 16)


class TextRows:
    """The `RowWriter` of SQLite."""

    def insert(self, connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
        """See `bulk_insert`."""
        columns_count = len(table.columns)
        for part in _parts(rows):
            statement = _insert_text(table.name, len(part), columns_count)
            connection.exec_driver_sql(statement, tuple(chain.from_iterable(part)))

    def update(
        self, connection: Connection, key: Column[Any], columns: Sequence[Column[Any]], rows: Sequence[tuple[Any, ...]]
    ) -> None:
        """See `bulk_update`."""
        table = key.table
        names = tuple(column.name for column in columns)
        for part in _parts(rows):
            statement = _update_text(table.name, key.name, names, len(part))
            connection.exec_driver_sql(statement, tuple(chain.from_iterable(part)))


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
