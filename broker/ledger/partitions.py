"""The ledger's monthly partitions on PostgreSQL: made ahead of time, so that retention is a dropped table.

A table that is partitioned by RANGE (recorded_us) has one partition for each month in UTC, named like
`attempt_2026_11`, and `attempt_default`, which catches a row that no month takes. Nobody lists the tables
here: the catalog knows them, so this stays right at any point of the migrations' history.

A row reaches DEFAULT only when nobody made partitions for months, or when a clock was wrong. Its month, if it
is past, current or asked for, gets a partition then, and the row moves there: DEFAULT is detached, its rows are
inserted anew through the parent, and the old table is dropped, all in the caller's transaction. So not even this
needs the DELETE that the ledger refuses. Rows of later months and of times before 1970 stay in DEFAULT.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

__all__ = ["ensure_partitions", "month_bounds", "month_of"]

LOCK_KEY = int.from_bytes(b"IBrkpart")
"""The advisory lock (one to a database) under which partitions are made."""

LOCK_TIMEOUT = "5s"
"""Whoever waits for a table makes all later comers wait too; so give up early and come back another time."""


@dataclass(frozen=True)
class _Partitioned:
    """A partitioned table; `default_exists` is false only while the migration is creating it."""

    name: str
    default_exists: bool

    @property
    def default(self) -> str:
        return f"{self.name}_default"

    def of(self, month: int) -> str:
        return f"{self.name}_{month // 12:04}_{month % 12 + 1:02}"


def ensure_partitions(connection: Connection, now_us: int, months_ahead: int = 3) -> list[str]:
    """Make the partitions that the current month and the next `months_ahead` lack; returns the names of the new ones.

    Runs in the caller's transaction, does nothing on SQLite, and may run in several processes at once. Writers
    of months that have their partition aren't held up, unless rows must move out of DEFAULT. Raises
    sqlalchemy's OperationalError where a table stays locked for 5 s; the caller rolls back and tries again later.
    """
    if connection.dialect.name != "postgresql":
        return []
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
    before = connection.execute(text("SELECT current_setting('lock_timeout')")).scalar_one()
    _set_lock_timeout(connection, LOCK_TIMEOUT)
    first = month_of(now_us)
    wanted = range(first, first + months_ahead + 1)
    created = [name for table in _partitioned(connection) for name in _ensure(connection, table, wanted)]
    _set_lock_timeout(connection, before)
    return created


def month_of(time_us: int) -> int:
    """The month, in UTC, of a time in Unix microseconds, counted from year 0."""
    moment = datetime.fromtimestamp(time_us // 1_000_000, UTC)
    return moment.year * 12 + moment.month - 1


def month_bounds(month: int) -> tuple[int, int]:
    """The first microsecond of a month and the first of the next."""

    def start(of: int) -> int:
        return int(datetime(of // 12, of % 12 + 1, 1, tzinfo=UTC).timestamp()) * 1_000_000

    return start(month), start(month + 1)


def _set_lock_timeout(connection: Connection, value: str) -> None:
    connection.execute(text("SELECT set_config('lock_timeout', :value, true)"), {"value": value})


def _partitioned(connection: Connection) -> list[_Partitioned]:
    rows = connection.execute(
        text(
            "SELECT c.relname, p.partdefid <> 0 FROM pg_partitioned_table p JOIN pg_class c ON c.oid = p.partrelid"
            " WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
            " AND pg_get_partkeydef(c.oid) = 'RANGE (recorded_us)' ORDER BY c.relname"
        )
    )
    return [_Partitioned(name, default_exists) for name, default_exists in rows]


def _ensure(connection: Connection, table: _Partitioned, wanted: range) -> list[str]:
    created = []
    if not table.default_exists:
        _create(connection, table, table.default, "DEFAULT")
        created.append(table.default)
    stray = _absent(connection, table, _stray_months(connection, table, wanted.stop))
    missing = sorted(stray | _absent(connection, table, wanted))
    if stray:
        _move_out_of_default(connection, table, missing)
    elif missing:
        try:
            with connection.begin_nested():
                _create_months(connection, table, missing)
        except IntegrityError:  # a row of such a month reached DEFAULT since we looked
            _move_out_of_default(connection, table, missing)
    return created + [table.of(month) for month in missing]


def _absent(connection: Connection, table: _Partitioned, months: Iterable[int]) -> set[int]:
    # to_regclass sees what other transactions have committed, even under REPEATABLE READ. It also sees a partition
    # that was detached and kept, whose name is taken; late rows of its month stay in DEFAULT.
    exists = text("SELECT to_regclass(quote_ident(current_schema()) || '.' || :name) IS NOT NULL")
    return {month for month in months if not connection.execute(exists, {"name": table.of(month)}).scalar_one()}


def _stray_months(connection: Connection, table: _Partitioned, end: int) -> set[int]:
    """The months before `end` that have rows in DEFAULT."""
    rows = connection.execute(
        text(
            "SELECT DISTINCT date_part('year', month), date_part('month', month) FROM (SELECT"  # noqa: S608 (our name)
            " to_timestamp(recorded_us / 1000000) AT TIME ZONE 'UTC' AS month"
            f" FROM {table.default} WHERE recorded_us >= 0 AND recorded_us < :end) AS found"
        ),
        {"end": month_bounds(end)[0]},
    )
    return {int(year) * 12 + int(month) - 1 for year, month in rows}


def _create_months(connection: Connection, table: _Partitioned, months: Iterable[int]) -> None:
    for month in months:
        first, end = month_bounds(month)
        _create(connection, table, table.of(month), f"FOR VALUES FROM ({first}) TO ({end})")


def _create(connection: Connection, table: _Partitioned, name: str, bounds: str) -> None:
    # Made apart and then attached, because CREATE TABLE … PARTITION OF would lock out the parent's readers and writers.
    connection.execute(text(f"CREATE TABLE {name} (LIKE {table.name} INCLUDING ALL)"))
    connection.execute(text(f"ALTER TABLE {table.name} ATTACH PARTITION {name} {bounds}"))
    # Row triggers come down from the parent; this one doesn't, and TRUNCATE may name the partition itself.
    connection.execute(
        text(
            f"CREATE TRIGGER {table.name}_no_truncate BEFORE TRUNCATE ON {name}"
            " FOR EACH STATEMENT EXECUTE FUNCTION refuse_ledger_change()"
        )
    )


def _move_out_of_default(connection: Connection, table: _Partitioned, months: Iterable[int]) -> None:
    old = f"{table.default}_old"
    # The whole lock at once: readers take the parent before its partitions, and so must we.
    connection.execute(text(f"LOCK TABLE {table.name} IN ACCESS EXCLUSIVE MODE"))
    connection.execute(text(f"ALTER TABLE {table.name} DETACH PARTITION {table.default}"))
    connection.execute(text(f"ALTER TABLE {table.default} RENAME TO {old}"))
    _create(connection, table, table.default, "DEFAULT")
    _create_months(connection, table, months)
    # Partitions are made LIKE their parent, so their columns stand in its order.
    connection.execute(text(f"INSERT INTO {table.name} SELECT * FROM {old}"))  # noqa: S608 (our own names)
    connection.execute(text(f"DROP TABLE {old}"))
