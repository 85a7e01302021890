"""Many rows at once on PostgreSQL: in by binary COPY, changed by one UPDATE over arrays."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Boolean, Column, Connection, Float, Integer, LargeBinary, Table
from sqlalchemy.exc import DBAPIError

from broker.database.types import Id

__all__ = ["CopiedRows"]

_BOOL, _BYTEA, _INT8, _INT4, _TEXT, _FLOAT8 = 16, 17, 20, 23, 25, 701
"""PostgreSQL's own numbers of its types."""

_INT4_MAX = 2**31 - 1


class _Shape(NamedTuple):
    """How a table's rows are written."""

    statement: str
    types: list[int]
    small: list[int]  # the places of four-byte integers, none of which may be null


class CopiedRows:
    """The `RowWriter` of PostgreSQL."""

    def insert(self, connection: Connection, table: Table, rows: Sequence[tuple[Any, ...]]) -> None:
        """See `bulk_insert`."""
        statement, types, small = _shape(table)
        with _driver_errors(connection, statement) as driver, driver.cursor().copy(statement) as copying:
            for place in small:  # the driver would cut off what doesn't fit, without a word
                numbers = [row[place] for row in rows]
                if max(numbers) > _INT4_MAX or min(numbers) < -_INT4_MAX - 1:
                    raise connection.dialect.loaded_dbapi.DataError(f"a number is out of range in column {place + 1}")
            copying.set_types(types)
            write = copying.write_row
            for row in rows:
                write(row)

    def update(
        self, connection: Connection, key: Column[Any], columns: Sequence[Column[Any]], rows: Sequence[tuple[Any, ...]]
    ) -> None:
        """See `bulk_update`."""
        statement = _update(key, tuple(columns))
        ids = [place for place, column in enumerate((key, *columns)) if isinstance(column.type, Id)]
        values: list[Any] = [list(part) for part in zip(*rows, strict=True)]
        for place in ids:
            values[place] = [None if one is None else uuid.UUID(bytes=one) for one in values[place]]
        with _driver_errors(connection, statement) as driver:
            driver.cursor().execute(statement, values)


@lru_cache(maxsize=64)
def _shape(table: Table) -> _Shape:
    columns = list(table.columns)
    names = ", ".join(column.name for column in columns)
    return _Shape(
        f"COPY {table.name} ({names}) FROM STDIN WITH (FORMAT BINARY)",
        [_number_of(column) for column in columns],
        [place for place, column in enumerate(columns) if _number_of(column) == _INT4 and not column.nullable],
    )


def _number_of(column: Column[Any]) -> int:
    """A uuid's 16 bytes are its binary form, so an id needs no wrapping: as bytes it arrives as what it is."""
    kind = column.type
    if isinstance(kind, Id | LargeBinary):
        return _BYTEA
    if isinstance(kind, Boolean):
        return _BOOL
    if isinstance(kind, BigInteger):
        return _INT8
    if isinstance(kind, Float):
        return _FLOAT8
    return _INT4 if isinstance(kind, Integer) else _TEXT


_ARRAYS = {_BOOL: "bool[]", _BYTEA: "bytea[]", _INT8: "int8[]", _INT4: "int4[]", _TEXT: "text[]", _FLOAT8: "float8[]"}


@lru_cache(maxsize=64)
def _update(key: Column[Any], columns: tuple[Column[Any], ...]) -> str:
    table = key.table
    arrays = ["uuid[]" if isinstance(one.type, Id) else _ARRAYS[_number_of(one)] for one in (key, *columns)]
    changes = ", ".join(f"{column.name} = new.column{place}" for place, column in enumerate(columns, start=2))
    names = ", ".join(f"column{place}" for place in range(1, len(arrays) + 1))
    values = ", ".join(f"%s::{array}" for array in arrays)
    return f"UPDATE {table} SET {changes} FROM unnest({values}) AS new ({names}) WHERE {table}.{key.name} = new.column1"  # noqa: S608 (names of our own tables)


@contextmanager
def _driver_errors(connection: Connection, statement: str) -> Iterator[Any]:
    """The driver's connection; what it raises becomes what SQLAlchemy would have raised."""
    dbapi_error = connection.dialect.loaded_dbapi.Error
    try:
        yield connection.connection.driver_connection
    except dbapi_error as error:
        raise DBAPIError.instance(
            statement, None, error, dbapi_error, hide_parameters=True, dialect=connection.dialect
        ) from error
