"""The ledger stays as it was written, and on PostgreSQL each month of it lies in a partition of its own."""

from __future__ import annotations

import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, Table, insert, select, text
from sqlalchemy.exc import IntegrityError, OperationalError

from broker.database.migrating import upgrade
from broker.ledger import partitions, tables
from broker.ledger.partitions import ensure_partitions, month_bounds, month_of

LEDGER = (tables.attempt, tables.cost_entry, tables.job_outcome, tables.ledger_batch, tables.price)


def us(*moment: int) -> int:
    year, month, day = moment
    return int(datetime(year, month, day, tzinfo=UTC).timestamp()) * 1_000_000


NEW_YEARS_EVE_US = us(2032, 1, 1) - 1
MONTHS = ["2031_12", "2032_01", "2032_02", "2032_03"]


def now() -> int:
    return time.time_ns() // 1000


def row_of(table: Table, recorded_us: int, **values: object) -> dict[str, Any]:
    """A row with something in every column, told apart by `recorded_us`."""

    def filler(column: Any) -> Any:
        kind = column.type.python_type
        return {int: recorded_us % 1000, bool: False, str: "x"}.get(kind, uuid.uuid4().bytes)

    row = {column.name: filler(column) for column in table.columns}
    if "recorded_us" in row:
        row["recorded_us"] = recorded_us
    return row | values


def digits_of(time: datetime) -> int:
    return int(time.timestamp()) * 1_000_000


# ------------------------------------------------------------------------------------------------- immutable ledger


def test_ledger_rows_are_never_changed(engine):
    upgrade(engine)
    for table in LEDGER:
        with engine.begin() as connection:
            connection.execute(insert(table), [row_of(table, now())])
            before = connection.execute(select(table)).all()
        key = next(iter(table.primary_key)).name
        refused = [("UPDATE", f"UPDATE {table.name} SET {key} = {key}"), ("DELETE", f"DELETE FROM {table.name}")]
        if engine.dialect.name == "postgresql":
            refused.append(("TRUNCATE", f"TRUNCATE {table.name}"))
        else:
            refused.append(("DELETE", f"INSERT OR REPLACE INTO {table.name} SELECT * FROM {table.name}"))
        for verb, statement in refused:
            with engine.connect() as connection:
                if "REPLACE" in statement:  # of which SQLite tells the triggers only then
                    connection.exec_driver_sql("PRAGMA recursive_triggers = ON")
                with pytest.raises(IntegrityError, match=rf"{table.name}\w* is append-only: {verb} is refused"):
                    connection.execute(text(statement))
        with engine.connect() as connection:
            assert connection.execute(select(table)).all() == before


def test_a_partition_is_dropped_whole_or_not_touched(postgres_engine, partitions_of):
    upgrade(postgres_engine)
    now_us = now()
    with postgres_engine.begin() as connection:
        connection.execute(insert(tables.attempt), [row_of(tables.attempt, now_us)])
        month = partitions_of(connection, "attempt")[0]
    for statement in (
        f"TRUNCATE {month}",
        f"DELETE FROM {month}",
        f"UPDATE {month} SET seq = 7",
        "TRUNCATE attempt_default",
    ):
        with postgres_engine.connect() as connection, pytest.raises(IntegrityError, match="is append-only"):
            connection.execute(text(statement))
    with postgres_engine.begin() as connection:
        connection.execute(text(f"DROP TABLE {month}"))
        assert connection.execute(select(tables.attempt)).all() == []


# ------------------------------------------------------------------------------------------------------ partitions


def ensure(engine: Engine, now_us: int, months_ahead: int = 3) -> list[str]:
    with engine.begin() as connection:
        return ensure_partitions(connection, now_us, months_ahead)


def places(connection: Connection, table: Table = tables.attempt) -> dict[int, str]:
    """In which partition each row lies."""
    rows = connection.execute(text(f"SELECT recorded_us, tableoid::regclass::text FROM {table.name}"))
    return {recorded_us: name.split(".")[-1].strip('"') for recorded_us, name in rows}


def record(engine: Engine, *times_us: int) -> None:
    with engine.begin() as connection:
        connection.execute(insert(tables.attempt), [row_of(tables.attempt, time_us) for time_us in times_us])


def test_months_are_cut_in_utc_to_the_microsecond():
    assert month_bounds(month_of(NEW_YEARS_EVE_US)) == (us(2031, 12, 1), us(2032, 1, 1))
    assert month_bounds(month_of(NEW_YEARS_EVE_US + 1)) == (us(2032, 1, 1), us(2032, 2, 1))
    assert month_bounds(month_of(us(2032, 2, 29))) == (us(2032, 2, 1), us(2032, 3, 1))
    assert month_bounds(month_of(0))[0] == 0


def test_sqlite_has_no_partitions(sqlite_engine):
    upgrade(sqlite_engine)
    assert ensure(sqlite_engine, NEW_YEARS_EVE_US) == []


def test_the_migration_makes_this_month_and_three_more(postgres_engine, partitions_of):
    first = month_of(now())
    upgrade(postgres_engine)
    expected = [f"{month // 12}_{month % 12 + 1:02}" for month in range(first, first + 4)]
    with postgres_engine.connect() as connection:
        for table in tables.PARTITIONED:
            assert partitions_of(connection, table.name) == [f"{table.name}_{end}" for end in [*expected, "default"]]
            index = text("SELECT indexdef FROM pg_indexes WHERE tablename = :table AND indexdef LIKE '%USING brin%'")
            for name in (table.name, f"{table.name}_{expected[0]}", f"{table.name}_default"):
                (definition,) = connection.execute(index, {"table": name}).scalars()
                assert definition.endswith("USING brin (recorded_us)")


def test_partitions_are_made_once(postgres_engine, partitions_of):
    upgrade(postgres_engine)
    made = [f"{table}_{month}" for table in ("attempt", "cost_entry") for month in MONTHS]
    assert ensure(postgres_engine, NEW_YEARS_EVE_US) == made
    assert ensure(postgres_engine, NEW_YEARS_EVE_US) == []
    assert ensure(postgres_engine, NEW_YEARS_EVE_US + 1) == ["attempt_2032_04", "cost_entry_2032_04"]
    with postgres_engine.connect() as connection:
        connection.execute(text("SET lock_timeout = '7s'"))
        ensure_partitions(connection, NEW_YEARS_EVE_US + 1, months_ahead=4)
        assert connection.execute(text("SHOW lock_timeout")).scalar_one() == "7s"


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
def test_partitions_made_at_once_are_made_once(postgres_engine, isolation):
    upgrade(postgres_engine)
    together = threading.Barrier(4, timeout=5)

    def make(_: int) -> list[str]:
        with postgres_engine.execution_options(isolation_level=isolation).begin() as connection:
            connection.execute(text("SELECT 1"))  # the snapshot is older than the others' partitions
            together.wait()
            return ensure_partitions(connection, NEW_YEARS_EVE_US)

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(make, range(4)))
    assert sorted(len(names) for names in made) == [0, 0, 0, 8]


def test_each_row_goes_to_its_month(postgres_engine):
    upgrade(postgres_engine)
    ensure(postgres_engine, NEW_YEARS_EVE_US)
    edges = {f"attempt_{name}": month_bounds(month_of(NEW_YEARS_EVE_US) + n) for n, name in enumerate(MONTHS)}
    expected = {time_us: name for name, (start, end) in edges.items() for time_us in (start, end - 1)}
    expected |= {us(2031, 12, 1) - 1: "attempt_default", us(2032, 4, 1): "attempt_default"}
    record(postgres_engine, *expected)
    with postgres_engine.connect() as connection:
        assert places(connection) == expected


@pytest.mark.parametrize("seen", [True, False], ids=["seen", "unseen"])
def test_rows_move_out_of_default_as_they_were(postgres_engine, partitions_of, monkeypatch, seen):
    upgrade(postgres_engine)
    forgotten, current, far, before_time = us(2031, 6, 15), NEW_YEARS_EVE_US, us(2199, 1, 1), -5
    record(postgres_engine, current, far, before_time, *([forgotten] if seen else []))
    with postgres_engine.connect() as connection:
        before = set(connection.execute(select(tables.attempt)).all())
        assert set(places(connection).values()) == {"attempt_default"}
    if not seen:  # as if the rows arrived after the look
        monkeypatch.setattr(partitions, "_stray_months", lambda *_: set())

    made = ensure(postgres_engine, NEW_YEARS_EVE_US)

    expected = {current: "attempt_2031_12", far: "attempt_default", before_time: "attempt_default"}
    if seen:
        expected[forgotten] = "attempt_2031_06"
    assert [name for name in made if name.startswith("attempt")] == sorted(
        {f"attempt_{month}" for month in MONTHS} | set(expected.values()) - {"attempt_default"}
    )
    with postgres_engine.connect() as connection:
        assert set(connection.execute(select(tables.attempt)).all()) == before
        assert places(connection) == expected
        assert [name for name in partitions_of(connection, "attempt") if "default" in name] == ["attempt_default"]
    for name in ("attempt_default", "attempt_2031_12"):
        for statement in (f"DELETE FROM {name}", f"TRUNCATE {name}"):
            with postgres_engine.connect() as connection, pytest.raises(IntegrityError, match="is append-only"):
                connection.execute(text(statement))
    assert ensure(postgres_engine, NEW_YEARS_EVE_US) == []


def test_a_month_that_was_detached_and_kept_is_left_alone(postgres_engine):
    upgrade(postgres_engine)
    ensure(postgres_engine, NEW_YEARS_EVE_US)
    with postgres_engine.begin() as connection:
        connection.execute(text("ALTER TABLE attempt DETACH PARTITION attempt_2031_12"))
    record(postgres_engine, NEW_YEARS_EVE_US)
    assert ensure(postgres_engine, us(2032, 1, 2), months_ahead=2) == []
    with postgres_engine.connect() as connection:
        assert places(connection) == {NEW_YEARS_EVE_US: "attempt_default"}


def test_new_months_dont_wait_for_writers_but_give_up_on_a_long_reader(postgres_engine, monkeypatch):
    upgrade(postgres_engine)
    monkeypatch.setattr(partitions, "LOCK_TIMEOUT", "200ms")
    with postgres_engine.begin() as writer:
        writer.execute(insert(tables.attempt), [row_of(tables.attempt, now())])
        assert len(ensure(postgres_engine, NEW_YEARS_EVE_US)) == 8
    with postgres_engine.begin() as reader:
        reader.execute(text("SELECT count(*) FROM attempt"))
        with pytest.raises(OperationalError, match="lock timeout"):
            ensure(postgres_engine, us(2033, 1, 1))
    assert len(ensure(postgres_engine, us(2033, 1, 1))) == 8
