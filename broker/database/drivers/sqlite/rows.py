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


_SHARED_ROWS_MIN = 16


class TextRows:
    """The `RowWriter` of SQLite. Used by one thread, which writes."""

    def __init__(self) -> None:
        self._shared: dict[str, tuple[int, ...]] = {}

    def insert(self, connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
        """See `bulk_insert`.

        A value that a column has in all rows of a statement is bound once: to bind it takes longer than to compare it.
        """
        for part in _parts(rows):
            shared: tuple[int, ...] = ()
            values = chain.from_iterable(part)
            if len(part) >= _SHARED_ROWS_MIN:
                columns = list(zip(*part, strict=True))
                shared = self._still_shared(table.name, columns)
                own = (column for index, column in enumerate(columns) if index not in shared)
                values = chain((part[0][index] for index in shared), *zip(*own, strict=True))
            statement = _insert_text(table, len(part), shared)
            connection.exec_driver_sql(statement, tuple(values))

    def _still_shared(self, table: str, columns: Sequence[tuple[Any, ...]]) -> tuple[int, ...]:
        """The columns with one value each, in this part as in all before it: so the statements stay few."""
        asked = self._shared.get(table, range(len(columns)))
        shared = tuple(index for index in asked if columns[index].count(columns[index][0]) == len(columns[index]))
        self._shared[table] = shared
        return shared

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
def _insert_text(table: Table, rows_count: int, shared: tuple[int, ...]) -> str:
    """The values of the `shared` columns come first, once, then each row's own.

    Only the shared ones have numbers: SQLite looks through a list of all that have one, wherever one is named.
    """
    own = tuple(index for index in range(len(table.columns)) if index not in shared)
    names = ", ".join(f'"{table.columns[index].name}"' for index in (*shared, *own))
    marks = [f"?{number}" for number in range(1, len(shared) + 1)] + ["?"] * len(own)
    row = f"({', '.join(marks)})"
    return f"INSERT INTO {table.name} ({names}) VALUES {', '.join([row] * rows_count)}"  # noqa: S608 (names of our own tables)


@lru_cache(maxsize=64)
def _update_text(table: str, key: str, columns: tuple[str, ...], rows_count: int) -> str:
    changes = ", ".join(f"{column} = new.column{place}" for place, column in enumerate(columns, start=2))
    values = f"(VALUES {_marks(rows_count, len(columns) + 1)}) AS new"
    return f"UPDATE {table} SET {changes} FROM {values} WHERE {table}.{key} = new.column1"  # noqa: S608 (as above)


def _marks(rows_count: int, columns_count: int) -> str:
    row = f"({', '.join('?' * columns_count)})"
    return ", ".join([row] * rows_count)
