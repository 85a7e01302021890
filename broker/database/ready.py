"""Statements on the line of waiting spans: a row per span, deleted when its jobs are dispatched or end."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, delete, func, select

from broker.database.tables import ready
from broker.domain.job import WaitingSpan

__all__ = [
    "KEEPERS",
    "GroupWaiting",
    "is_empty",
    "next_due_us",
    "next_spans",
    "overdue_spans",
    "waiting_groups",
    "waiting_spans_of_batch",
    "withdraw",
]


KEEPERS = "ready"
"""What `fencing.alone` calls those who take spans out of the line: one of them at a time."""

_PAUSE_US_MAX = 60_000_000


class GroupWaiting(msgspec.Struct, frozen=True):
    """How much of a group can be dispatched now."""

    group_id: bytes
    deadline_us: int
    jobs_count: int


def is_empty(connection: Connection) -> bool:
    """Whether nothing waits at all."""
    return connection.execute(select(ready.c.first_job_id).limit(1)).first() is None


def waiting_groups(connection: Connection, now_us: int, held_batches: Collection[bytes] = ()) -> list[GroupWaiting]:
    """The groups with jobs that may go now, earliest deadline first. Batches in `held_batches` stay."""
    deadline = func.min(ready.c.deadline_us)
    rows = connection.execute(
        select(ready.c.group_id, deadline, func.sum(ready.c.jobs_count))
        .where(*_may_go(now_us, held_batches))
        .group_by(ready.c.group_id)
        .order_by(deadline, ready.c.group_id)
    )
    return [GroupWaiting(group_id, int(due), int(count)) for group_id, due, count in rows]


def next_due_us(connection: Connection, now_us: int) -> int | None:
    """When the next span that rests after a failure may go."""
    query = select(func.min(ready.c.not_before_us)).where(ready.c.not_before_us > now_us)
    due: int | None = connection.execute(query).scalar_one()
    return due


def next_spans(
    connection: Connection, group_id: bytes, now_us: int, held_batches: Collection[bytes], limit: int
) -> list[WaitingSpan]:
    """The group's next spans, earliest deadline first."""
    rows = connection.execute(
        select(ready)
        .where(ready.c.group_id == group_id, *_may_go(now_us, held_batches))
        .order_by(ready.c.deadline_us, ready.c.first_job_id)
        .limit(limit)
    )
    return [_span(row) for row in rows]


def waiting_spans_of_batch(connection: Connection, batch_id: bytes, limit: int) -> list[WaitingSpan]:
    """Spans of a batch that still wait."""
    rows = connection.execute(
        select(ready).where(ready.c.batch_id == batch_id).order_by(ready.c.first_job_id).limit(limit)
    )
    return [_span(row) for row in rows]


def overdue_spans(connection: Connection, now_us: int, limit: int) -> list[WaitingSpan]:
    """Spans whose deadline has passed while they waited."""
    rows = connection.execute(
        select(ready).where(ready.c.deadline_us <= now_us).order_by(ready.c.first_job_id).limit(limit)
    )
    return [_span(row) for row in rows]


def withdraw(connection: Connection, spans: list[WaitingSpan]) -> None:
    """Take whole spans out of the line, because their jobs have ended."""
    if spans:
        connection.execute(delete(ready).where(ready.c.first_job_id.in_([span.first_job_id for span in spans])))


def _may_go(now_us: int, held_batches: Collection[bytes]) -> list[ColumnElement[bool]]:
    # No pause is that long: the clock was set back meanwhile.
    rested = (ready.c.not_before_us <= now_us) | (ready.c.not_before_us > now_us + _PAUSE_US_MAX)
    conditions: list[ColumnElement[bool]] = [rested, ready.c.deadline_us > now_us]
    if held_batches:
        conditions.append(ready.c.batch_id.is_(None) | ready.c.batch_id.not_in(list(held_batches)))
    return conditions


def _span(row: Row[tuple[object, ...]]) -> WaitingSpan:
    return msgspec.convert(row._mapping, WaitingSpan)  # noqa: SLF001 (SQLAlchemy's public name for it)
