"""Rows of CSV files that people bring: read whole, each fault told in one sentence with file, row and field."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from typing import Any, NoReturn, TypeVar

from broker.domain.errors import UsageError

__all__ = ["CsvRow", "read_rows", "refuse_doubles"]


class CsvRow:
    """One row; a subclass checks it as it is made. `key` says what it is about, for two must not be of the same."""

    key: tuple[str, ...] = ()

    def __init__(self, file: str, number: int, row: dict[str, Any]) -> None:
        self.number = number
        self._file = file
        self._row = row
        if None in row or any(value is None for value in row.values()):
            self.refuse("row", "has more or fewer cells than the header")

    def text(self, field: str) -> str:
        """A cell without the space around it; empty where there is no such column."""
        return str(self._row.get(field) or "").strip()

    def refuse(self, field: str, fault: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{self._file}, row {self.number}, {field}: {fault}")

    def check_origin(self, today: date, days_max: int | None) -> None:
        """Refuse a figure without a source, or with a date that is none, lies ahead, or is older than so many days.

        None is for what was checked when it was taken in: it may grow old.
        """
        if not self.text("source"):
            self.refuse("source", "is empty; every figure names where it was read")
        try:
            as_of = date.fromisoformat(self.text("as_of"))
        except ValueError:
            self.refuse("as_of", f"{self.text('as_of')[:40]!r} is no date such as 2026-11-22")
        if as_of > today + timedelta(days=1):
            self.refuse("as_of", f"{as_of} lies ahead")
        if days_max is not None and (today - as_of).days > days_max:
            self.refuse("as_of", f"{as_of} is stale: {(today - as_of).days} days old; the limit is {days_max}")

    def whole(self, field: str) -> int:
        """A whole number of 1 or more."""
        text = self.text(field)
        if not (text.isascii() and text.isdigit()) or int(text) < 1:
            self.refuse(field, f"{text[:20]!r} is not a number of 1 or more")
        return int(text)


Row = TypeVar("Row", bound=CsvRow)


def read_rows(
    name: str,
    content: bytes,
    columns: Sequence[str],
    needed: Sequence[str],
    kind: str,
    make: Callable[[int, dict[str, Any]], Row],
) -> list[Row]:
    """The rows of a file of this `kind`, made one by one with their numbers in it. Raises UsageError."""
    try:
        reader = csv.DictReader(content.decode("utf-8-sig").splitlines())
    except UnicodeDecodeError:
        raise UsageError(f"{name} is not a CSV file in UTF-8") from None
    header = reader.fieldnames or []
    unknown = sorted({column for column in header if column not in columns})
    missing = [column for column in needed if column not in header]
    if unknown or missing:
        fault = f"has the column {unknown[0]!r}" if unknown else f"lacks the column {missing[0]}"
        raise UsageError(f"{name} {fault}; {kind} has {', '.join(columns)}")
    rows = [make(number, row) for number, row in enumerate(reader, start=2)]
    refuse_doubles(rows)
    return rows


def refuse_doubles(rows: Sequence[CsvRow]) -> None:
    """Raises UsageError for the first row that is of the same thing as one before it."""
    seen: dict[tuple[str, ...], CsvRow] = {}
    for row in rows:
        first = seen.setdefault(row.key, row)
        if first is not row:
            row.refuse("row", f"is of the same thing as row {first.number}: {', '.join(filter(None, row.key))}")
