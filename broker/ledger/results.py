"""Reading a batch back, line by line, as it ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, bindparam, select

from broker.database.tables import batch_refusal, job, result
from broker.domain.errors import ErrorCode
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
_ENDS = select(
    job_outcome.c.job_id,
    job_outcome.c.outcome,
    job_outcome.c.error_code,
    result.c.status_code,
    result.c.request_id,
    result.c.message,
    result.c.body,
).outerjoin(result, result.c.job_id == job_outcome.c.job_id)
_ENDS_BETWEEN = _ENDS.where(job_outcome.c.job_id.between(bindparam("first"), bindparam("last")))
_ENDS_OF = _ENDS.where(job_outcome.c.job_id.in_(bindparam("ids", expanding=True)))
_RUN_JOBS_MIN = 16
"""Jobs of shorter runs are asked for together, by their ids."""


def ended_lines(connection: Connection, batch_id: bytes, after_line: int, limit: int) -> EndedLines:
    """The batch's next lines above `after_line`, in the source's order, up to the first that has not ended.

    At most `limit`. Their ends are read by their ids: a join would leave it to a planner without statistics how
    much of the tables to read for each page.
    """
    wanted = {"of_batch": batch_id, "after_line": after_line, "lines_max": limit}
    lines = connection.execute(_NEAR_JOBS, wanted | {"last_line": after_line + limit}).all()
    if not lines:  # so many refused lines in a row, or the end
        lines = connection.execute(_JOBS, wanted).all()
    ends: dict[bytes, Any] = {row[0]: row for row in _ends_of(connection, [job_id for _, job_id, _ in lines])}
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


def _ends_of(connection: Connection, job_ids: list[bytes]) -> Iterator[Any]:
    """The ends of these jobs, without those of others; it may leave out what comes after one that has not ended."""
    place = {job_id: number for number, job_id in enumerate(job_ids)}
    short: list[bytes] = []
    for run in sorted(_runs(job_ids), key=lambda run: min(place[job_id] for job_id in run)):
        if len(run) < _RUN_JOBS_MIN:
            short += run
            continue
        found = connection.execute(_ENDS_BETWEEN, {"first": run[0], "last": run[-1]}).all()
        yield from found
        if len(found) < len(run) and min(run, key=place.__getitem__) not in {row[0] for row in found}:
            break
    if short:
        yield from connection.execute(_ENDS_OF, {"ids": short})


def _runs(job_ids: list[bytes]) -> list[list[bytes]]:
    """The ids in runs without a gap.

    A span's ids aren't in the order of its lines: those of prompts that begin alike stand together.
    """
    runs: list[list[bytes]] = []
    following = -1
    for job_id in sorted(job_ids):
        number = int.from_bytes(job_id)
        if number == following:
            runs[-1].append(job_id)
        else:
            runs.append([job_id])
        following = number + 1
    return runs


def refused_lines(connection: Connection, batch_id: bytes, after_line: int, limit: int) -> list[RefusedLine]:
    """The batch's next refused lines above `after_line`, in the order of the source."""
    rows = connection.execute(
        select(batch_refusal)
        .where(batch_refusal.c.batch_id == batch_id, batch_refusal.c.line_number > after_line)
        .order_by(batch_refusal.c.line_number)
        .limit(limit)
    )
    return [RefusedLine(row.line_number, row.custom_id, ErrorCode(row.error_code), row.message) for row in rows]
