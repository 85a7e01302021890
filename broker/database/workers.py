"""Statements on who is there: workers, and the roles of the broker."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from broker.database.tables import role_beat, worker

__all__ = [
    "PRESENCE",
    "beat",
    "beat_us",
    "database_now_us",
    "forget_long_gone",
    "live_slots",
]


PRESENCE = """
INSERT INTO worker (worker_id, lane, slots, started_us, seen_us, left_us)
VALUES (:worker_id, :lane, :slots, :now_us, :now_us, :draining_us)
ON CONFLICT (worker_id) DO UPDATE SET
    slots = excluded.slots,
    seen_us = excluded.seen_us,
    -- it left once: a word that was under way then, and comes late, doesn't bring it back
    left_us = coalesce(worker.left_us, excluded.left_us)
"""
"""Notes that a worker is there (`draining_us` null) or leaves; not for one that only starts, which is no capacity."""


def live_slots(connection: Connection, since_us: int) -> dict[str, int]:
    """How many shards the workers that were heard of since then can run at once, by lane."""
    rows = connection.execute(
        select(worker.c.lane, func.sum(worker.c.slots))
        .where(worker.c.seen_us >= since_us, worker.c.left_us.is_(None))
        .group_by(worker.c.lane)
    )
    return {lane: int(slots) for lane, slots in rows}


def forget_long_gone(connection: Connection, before_us: int) -> None:
    """Workers not heard of since then leave no trace here; the ledger names those that ran something."""
    connection.execute(delete(worker).where(worker.c.seen_us < before_us))


def database_now_us(connection: Connection) -> int:
    """The database server's time, to the microsecond. On PostgreSQL alone."""
    return int(
        connection.exec_driver_sql("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").scalar_one()
    )


def beat(connection: Connection, role: str, now_us: int) -> None:
    """A role says that it works."""
    _put(connection, role_beat, {"role": role}, {"beat_us": now_us})


def beat_us(connection: Connection, role: str) -> int | None:
    """When a role last said so."""
    return connection.execute(select(role_beat.c.beat_us).where(role_beat.c.role == role)).scalar_one_or_none()


def _put(connection: Connection, table: Table, key: dict[str, Any], values: dict[str, Any]) -> None:
    """Insert the row, or set `values` on the one that is there."""
    fresh = _insert(connection, table).values(**key, **values)
    connection.execute(fresh.on_conflict_do_update(index_elements=list(key), set_=values))


def _insert(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)
