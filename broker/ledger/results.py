"""Reading a batch back, line by line, as it ended."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from sqlalchemy import Connection, bindparam, select

from broker.database.tables import batch_refusal, job, result
from broker.domain.errors import ErrorCode
from broker.domain.ids import id_offset, span_of
from broker.domain.job import RefusedLine
from broker.domain.outcome import Outcome
from broker.ledger.tables import job_outcome

__all__ = ["EndedLine", "EndedLines", "ended_lines", "refused_lines"]


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


class EndedLines(NamedTuple):
    """Some lines; `goes_on` unless it is known that the next one has not ended, or that there is none."""

    lines: list[EndedLine]
    goes_on: bool


_JOBS = (
    select(job.c.line_number, job.c.job_id, job.c.custom_id)
    .where(job.c.batch_id == bindparam("of_batch"), job.c.line_number > bindparam("after_line"))
    .order_by(job.c.line_number)
    .limit(bindparam("lines_max"))
)
# Bounded on both sides: without statistics, PostgreSQL would read and sort the whole rest of the batch for each page.
_NEAR_JOBS = _JOBS.where(job.c.line_number <= bindparam("last_line"))
_ENDS = (
    select(
        job_outcome.c.job_id,
        job_outcome.c.outcome,
        job_outcome.c.error_code,
        result.c.status_code,
        result.c.request_id,
        result.c.message,
        result.c.body,
    )
    .outerjoin(result, result.c.job_id == job_outcome.c.job_id)
    .where(job_outcome.c.job_id.between(bindparam("first"), bindparam("last")))
)


def ended_lines(connection: Connection, batch_id: bytes, after_line: int, limit: int) -> EndedLines:
    """The batch's next lines above `after_line`, in the source's order, up to the first that has not ended.

    At most `limit`. Their ends are read by ranges of ids: a join would leave it to a planner without statistics how
    much of the tables to read for each page.
    """
    wanted = {"of_batch": batch_id, "after_line": after_line, "lines_max": limit}
    lines = connection.execute(_NEAR_JOBS, wanted | {"last_line": after_line + limit}).all()
    if not lines:  # so many refused lines in a row, or the end
        lines = connection.execute(_JOBS, wanted).all()
    ends = {}
    for first, last in _id_ranges([job_id for _, job_id, _ in lines]):
        found = connection.execute(_ENDS, {"first": first, "last": last}).all()
        ends.update({row[0]: row for row in found})
        if len(found) <= id_offset(first, last):
            break
    ended = []
    for line_number, job_id, custom_id in lines:
        if (end := ends.get(job_id)) is None:
            break
        _, outcome, code, status_code, request_id, message, body = end
        ended.append(
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
        )
    return EndedLines(ended, goes_on=0 < len(lines) == len(ended))


def _id_ranges(job_ids: list[bytes]) -> list[tuple[bytes, bytes]]:
    """The first and the last of the ids of each span; within a span, ids are in the order of the lines."""
    firsts = {span_of(job_id): job_id for job_id in reversed(job_ids)}
    lasts = {span_of(job_id): job_id for job_id in job_ids}
    return [(firsts[span], last) for span, last in lasts.items()]


def refused_lines(connection: Connection, batch_id: bytes, after_line: int, limit: int) -> list[RefusedLine]:
    """The batch's next refused lines above `after_line`, in the order of the source."""
    rows = connection.execute(
        select(batch_refusal)
        .where(batch_refusal.c.batch_id == batch_id, batch_refusal.c.line_number > after_line)
        .order_by(batch_refusal.c.line_number)
        .limit(limit)
    )
    return [RefusedLine(row.line_number, row.custom_id, ErrorCode(row.error_code), row.message) for row in rows]
