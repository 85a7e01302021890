"""A ledger row's values as they were written, whichever database keeps them: those of its own version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Boolean, ColumnElement, Connection, Integer, Table, type_coerce

from broker.ledger.versions import UnknownVersion, columns_of

__all__ = ["RowAsWritten", "RowValues"]


class RowAsWritten(NamedTuple):
    """The columns of the row's version, their values, and its leaf.

    `has_more`: a column that came with a later version holds something, which cannot have been written.
    """

    names: tuple[str, ...]
    values: list[Any]
    leaf: bytes
    has_more: bool


class _Layout(NamedTuple):
    """The columns of a version, and their places in a row; `later` are the places of what came after it."""

    names: tuple[str, ...]
    places: tuple[int, ...]
    later: tuple[int, ...]


class RowValues:
    """Reads rows of one table: select `columns`, then `of` a row gives its values as they were written."""

    def __init__(self, connection: Connection, table: Table) -> None:
        # SQLite keeps flags as integers, and its driver takes any but 0 for true; the ledger does not.
        kept = connection.dialect.name == "sqlite"
        flags = [place for place, column in enumerate(table.c) if isinstance(column.type, Boolean)] if kept else []
        self._table = table
        self._flags = flags
        self._leaf = table.c.keys().index("leaf")
        self._version = table.c.keys().index("schema_version")
        self._layouts: dict[int, _Layout] = {}
        self.columns: list[ColumnElement[Any]] = [
            type_coerce(column, Integer) if place in flags else column for place, column in enumerate(table.c)
        ]

    def of(self, row: Sequence[Any]) -> RowAsWritten:
        """The row by its version; a flag that is none any more stays what it is. Raises UnknownVersion."""
        values = list(row)
        for place in self._flags:
            values[place] = {0: False, 1: True}.get(values[place], values[place])
        names, places, later = self._layouts.get(values[self._version]) or self._layout(values[self._version])
        has_more = any(values[place] is not None for place in later)
        return RowAsWritten(names, [values[place] for place in places], values[self._leaf], has_more)

    def _layout(self, version: object) -> _Layout:
        if not isinstance(version, int):
            raise UnknownVersion(version)
        names, all_names = columns_of(self._table, version), self._table.c.keys()
        later = tuple(place for place, name in enumerate(all_names) if name != "leaf" and name not in names)
        layout = _Layout(names, tuple(all_names.index(name) for name in names), later)
        self._layouts[version] = layout
        return layout
