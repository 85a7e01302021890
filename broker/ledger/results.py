"""Reading a batch back, line by line, as it ended."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, select

from broker.database.tables import batch_refusal, job, result
from broker.domain.errors import ErrorCode
from broker.domain.job import RefusedLine
from broker.domain.outcome import Outcome
from broker.ledger.tables import job_outcome

__all__ = ["EndedLine", "ended_lines", "refused_lines"]


_OUTCOMES = {outcome.value: outcome for outcome in Outcome}


class EndedLine(msgspec.Struct, frozen=True):
    """A line whose job ended; what its result holds, if an attempt brought one."""

    line_number: int
    job_id: bytes
    custom_id: str
    outcome: Outcome
    error_code: ErrorCode | None
    status_code: int
    request_id: str
    message: str
    body: bytes


def ended_lines(connection: Connection, batch_id: bytes, after_line: int, limit: int) -> list[EndedLine]:
    """The batch's next ended lines above `after_line`, in the order of the source."""
    rows = connection.execute(
        select(
            job.c.line_number,
            job.c.job_id,
            job.c.custom_id,
            job_outcome.c.outcome,
            job_outcome.c.error_code,
            result.c.status_code,
            result.c.request_id,
            result.c.message,
            result.c.body,
        )
        .join(job_outcome, job_outcome.c.job_id == job.c.job_id)
        .outerjoin(result, result.c.job_id == job.c.job_id)
        .where(job.c.batch_id == batch_id, job.c.line_number > after_line)
        .order_by(job.c.line_number)
        .limit(limit)
    ).all()
    return [
        EndedLine(
            line_number,
            job_id,
            custom_id,
            _OUTCOMES[outcome],
            ErrorCode(code) if code else None,
            status_code or 0,
            request_id or "",
            message or "",
            body or b"",
        )
        for line_number, job_id, custom_id, outcome, code, status_code, request_id, message, body in rows
    ]


def refused_lines(connection: Connection, batch_id: bytes, after_line: int, limit: int) -> list[RefusedLine]:
    """The batch's next refused lines above `after_line`, in the order of the source."""
    rows = connection.execute(
        select(batch_refusal)
        .where(batch_refusal.c.batch_id == batch_id, batch_refusal.c.line_number > after_line)
        .order_by(batch_refusal.c.line_number)
        .limit(limit)
    )
    return [RefusedLine(row.line_number, row.custom_id, ErrorCode(row.error_code), row.message) for row in rows]
