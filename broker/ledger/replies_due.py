"""Which replies are due, and what they say: of jobs that were refused, or have ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, case, func, select

from broker.database.replies import AskedReply
from broker.database.tables import reply, result
from broker.domain.bus_jobs import REFUSED
from broker.ledger.tables import job_outcome

__all__ = ["DueReply", "due_of", "due_page", "refusals"]

REPLY_BODY_BYTES_MAX = 1_000_000
"""A larger one is not sent, so that what is read at once has a bound too."""

_ROWS_TOGETHER = 200


class DueReply(msgspec.Struct, frozen=True):
    """What was asked for, and what is to be told. `body` is empty where it has more than REPLY_BODY_BYTES_MAX."""

    asked: AskedReply
    status: str
    error_code: str | None
    message: str
    status_code: int
    body_bytes: int
    body: bytes


def refusals(connection: Connection, silent: Sequence[str], limit: int) -> list[DueReply]:
    """Some replies to what became no job; none for the queues in `silent`."""
    rows = connection.execute(
        select(reply).where(reply.c.job_id.is_(None), reply.c.reply_to.not_in(silent)).limit(limit)
    )
    return [
        DueReply(AskedReply(**row._mapping), REFUSED, row.error_code, row.message or "", 0, 0, b"")  # noqa: SLF001 (SQLAlchemy's public name for it)
        for row in rows
    ]


def due_of(connection: Connection, job_ids: Sequence[bytes], silent: Sequence[str]) -> list[DueReply]:
    """The replies for those of these jobs that have ended and are asked about."""
    found: list[DueReply] = []
    for start in range(0, len(job_ids), _ROWS_TOGETHER):
        found += _ended(connection, reply.c.job_id.in_(job_ids[start : start + _ROWS_TOGETHER]), silent)
    return found


def due_page(
    connection: Connection, after: bytes, rows: int, silent: Sequence[str]
) -> tuple[list[DueReply], bytes | None]:
    """What is due among the next so many that are waited for, and the last of these; None where there are no more."""
    ids = list(
        connection.execute(
            select(reply.c.job_id).where(reply.c.job_id > after).order_by(reply.c.job_id).limit(rows)
        ).scalars()
    )
    if not ids:
        return [], None
    found = _ended(connection, reply.c.job_id.between(ids[0], ids[-1]), silent)
    return found, ids[-1] if len(ids) == rows else None


def _ended(connection: Connection, which: ColumnElement[bool], silent: Sequence[str]) -> list[DueReply]:
    rows = connection.execute(
        select(
            reply,
            job_outcome.c.outcome,
            job_outcome.c.error_code.label("end_code"),
            result.c.message.label("end_message"),
            result.c.status_code,
            func.length(result.c.body).label("body_bytes"),
            case((func.length(result.c.body) <= REPLY_BODY_BYTES_MAX, result.c.body)).label("body"),
        )
        .join(job_outcome, job_outcome.c.job_id == reply.c.job_id)
        .outerjoin(result, result.c.job_id == reply.c.job_id)
        .where(which, reply.c.reply_to.not_in(silent))
    )
    return [_due(row) for row in rows]


def _due(row: Any) -> DueReply:  # noqa: ANN401 (SQLAlchemy's rows have no columns for mypy)
    asked = AskedReply(**{name: getattr(row, name) for name in AskedReply.__struct_fields__})
    return DueReply(
        asked=asked,
        status=row.outcome,
        error_code=row.end_code,
        message=row.end_message or "",
        status_code=row.status_code or 0,
        body_bytes=row.body_bytes or 0,
        body=bytes(row.body or b""),
    )
