"""Statements on the line of waiting spans: a row per span, deleted when its jobs are dispatched or end."""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from sqlalchemy import (
    BigInteger,
    Connection,
    Row,
    bindparam,
    delete,
    func,
    literal,
    select,
    tuple_,
)

from broker.database.tables import batch, ready
from broker.database.types import Id
from broker.domain.job import WaitingSpan

__all__ = [
    "KEEPERS",
    "GroupWaiting",
    "Page",
    "groups_of_batches",
    "is_empty",
    "least_tried_spans",
    "load",
    "next_due_us",
    "next_spans",
    "often_preempted",
    "overdue_spans",
    "spans_of_batches",
    "spans_of_cancelled",
    "waiting_groups",
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


# Built once: putting a statement together costs more than running it.
_NOW = bindparam("now_us", type_=BigInteger)
_MAY_GO = (
    # No pause is that long: the clock was set back meanwhile.
    (ready.c.not_before_us <= _NOW) | (ready.c.not_before_us > bindparam("longest_pause_us", type_=BigInteger)),
    ready.c.deadline_us > _NOW,
)
_NOT_HELD = ready.c.batch_id.is_(None) | ready.c.batch_id.not_in(bindparam("held_batches", expanding=True))
_ANY = select(literal(1)).select_from(ready).limit(1)
_GROUPS = (
    select(ready.c.group_id, func.min(ready.c.deadline_us).label("due_us"), func.sum(ready.c.jobs_count))
    .where(*_MAY_GO)
    .group_by(ready.c.group_id)
    .order_by("due_us", ready.c.group_id)
)
_KEPT_OFF_SPOT = (
    select(ready.c.group_id, func.sum(ready.c.jobs_count))
    .where(ready.c.preemptions >= bindparam("preemptions_max"), *_MAY_GO)
    .group_by(ready.c.group_id)
)
_NEXT_DUE = select(func.min(ready.c.not_before_us)).where(ready.c.not_before_us > _NOW)
_NEXT = (
    select(ready)
    .where(ready.c.group_id == bindparam("of_group"), *_MAY_GO, _NOT_HELD)
    .where(ready.c.body_bytes_max <= bindparam("bytes_max"))
    .limit(bindparam("spans_max"))
)
_IN_LINE = _NEXT.where(
    tuple_(ready.c.deadline_us, ready.c.first_job_id)
    > tuple_(bindparam("after_deadline_us", type_=BigInteger), bindparam("after_job_id", type_=Id))
).order_by(ready.c.deadline_us, ready.c.first_job_id)
_LEAST_TRIED = _NEXT.order_by(ready.c.attempt_number, ready.c.deadline_us, ready.c.first_job_id)
_LOAD = select(ready).where(ready.c.first_job_id.in_(bindparam("first_job_ids", expanding=True)))
_TO_BE_CANCELLED = select(batch.c.batch_id).where(
    batch.c.finished_us.is_(None), batch.c.cancel_requested_us.is_not(None)
)
_OF_CANCELLED = select(ready).where(ready.c.batch_id.in_(_TO_BE_CANCELLED)).limit(bindparam("spans_max"))
_IN_BATCHES = ready.c.batch_id.in_(bindparam("of_batches", expanding=True))
_OF_BATCHES = select(ready).where(_IN_BATCHES).limit(bindparam("spans_max"))
_GROUPS_OF_BATCHES = select(ready.c.batch_id, ready.c.group_id).where(_IN_BATCHES).distinct()
_WITHDRAW = delete(ready).where(ready.c.first_job_id.in_(bindparam("spans", expanding=True)))


def is_empty(connection: Connection) -> bool:
    """Whether nothing waits at all."""
    return connection.execute(_ANY).first() is None


def waiting_groups(connection: Connection, now_us: int) -> list[GroupWaiting]:
    """The groups with jobs that may go now, earliest deadline first."""
    rows = connection.execute(_GROUPS, _at(now_us)).all()
    return [GroupWaiting(group_id, int(due), int(count)) for group_id, due, count in rows]


def often_preempted(connection: Connection, now_us: int, preemptions_max: int) -> dict[bytes, int]:
    """How many of a group's jobs that may go now were preempted at least so often; groups with none are left out."""
    rows = connection.execute(_KEPT_OFF_SPOT, _at(now_us) | {"preemptions_max": preemptions_max}).all()
    return {group_id: int(count) for group_id, count in rows}


def next_due_us(connection: Connection, now_us: int) -> int | None:
    """When the next span that rests after a failure may go."""
    due: int | None = connection.execute(_NEXT_DUE, {"now_us": now_us}).scalar_one()
    return due


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Which spans of a group's line to read: what may go now, and comes after `after`, by deadline and first job.

    Without those of held batches, and those with bodies above `bytes_max`.
    """

    group_id: bytes
    now_us: int
    held_batches: Collection[bytes]
    bytes_max: int
    spans_max: int
    after: tuple[int, bytes] = (0, bytes(16))


def next_spans(connection: Connection, page: Page) -> list[WaitingSpan]:
    """The group's next spans, earliest deadline first."""
    after_us, after_id = page.after
    terms = _of(page) | {"after_deadline_us": after_us, "after_job_id": after_id}
    return [_span(row) for row in connection.execute(_IN_LINE, terms).all()]


def least_tried_spans(connection: Connection, page: Page) -> list[WaitingSpan]:
    """The group's spans with the fewest attempts first, from the start of the line."""
    return [_span(row) for row in connection.execute(_LEAST_TRIED, _of(page)).all()]


def _of(page: Page) -> dict[str, object]:
    return {
        "of_group": page.group_id,
        "held_batches": list(page.held_batches),
        "bytes_max": page.bytes_max,
        "spans_max": page.spans_max,
        **_at(page.now_us),
    }


def load(connection: Connection, first_job_ids: Collection[bytes]) -> list[WaitingSpan]:
    """The spans that begin with these jobs and still wait."""
    return [_span(row) for row in connection.execute(_LOAD, {"first_job_ids": list(first_job_ids)})]


def spans_of_cancelled(connection: Connection, limit: int) -> list[WaitingSpan]:
    """Waiting spans of batches that are to be cancelled, whichever."""
    return [_span(row) for row in connection.execute(_OF_CANCELLED, {"spans_max": limit})]


def spans_of_batches(connection: Connection, batch_ids: Collection[bytes], limit: int) -> list[WaitingSpan]:
    """Waiting spans of these batches, whichever."""
    asked = {"of_batches": list(batch_ids), "spans_max": limit}
    return [_span(row) for row in connection.execute(_OF_BATCHES, asked)]


def groups_of_batches(connection: Connection, batch_ids: Collection[bytes]) -> dict[bytes, set[bytes]]:
    """Which groups' jobs wait, for each of these batches that waits."""
    groups: dict[bytes, set[bytes]] = {}
    for batch_id, group_id in connection.execute(_GROUPS_OF_BATCHES, {"of_batches": list(batch_ids)}):
        groups.setdefault(batch_id, set()).add(group_id)
    return groups


def overdue_spans(connection: Connection, now_us: int, limit: int) -> list[WaitingSpan]:
    """Spans whose deadline has passed while they waited."""
    rows = connection.execute(
        select(ready).where(ready.c.deadline_us <= now_us).order_by(ready.c.first_job_id).limit(limit)
    )
    return [_span(row) for row in rows]


def withdraw(connection: Connection, spans: list[WaitingSpan]) -> None:
    """Take whole spans out of the line, because their jobs have ended."""
    if spans:
        connection.execute(_WITHDRAW, {"spans": [span.first_job_id for span in spans]})


def _at(now_us: int) -> dict[str, int]:
    return {"now_us": now_us, "longest_pause_us": now_us + _PAUSE_US_MAX}


def _span(row: Row[tuple[object, ...]]) -> WaitingSpan:
    return msgspec.convert(row._mapping, WaitingSpan)  # noqa: SLF001 (SQLAlchemy's public name for it)
