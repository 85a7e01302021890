"""A ledger row's values as they were written, whichever database keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Boolean, ColumnElement, Connection, Integer, Table, type_coerce

__all__ = ["RowValues"]


class RowValues:
    """Reads rows of one table. Select `columns`, then `of` a row gives its values in the table's order."""

    def __init__(self, connection: Connection, table: Table) -> None:
        # SQLite keeps flags as integers, and its driver takes any but 0 for true; the ledger does not.
        kept = connection.dialect.name == "sqlite"
        flags = [place for place, column in enumerate(table.c) if isinstance(column.type, Boolean)] if kept else []
        self._flags = flags
        self.columns: list[ColumnElement[Any]] = [
            type_coerce(column, Integer) if place in flags else column for place, column in enumerate(table.c)
        ]

    def of(self, row: Sequence[Any]) -> list[Any]:
        """The row's values; one that is no flag any more stays what it is."""
        values = list(row)
        for place in self._flags:
            values[place] = {0: False, 1: True}.get(values[place], values[place])
        return values
