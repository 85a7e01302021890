"""Which lines of batches did not succeed and were not run again, page by page. Asks for one tenant."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, select

from broker.database.reruns import LeftLine, jobs_between
from broker.domain.errors import ErrorCode
from broker.domain.outcome import Outcome
from broker.ledger.tables import job_outcome

__all__ = ["Left", "LeftLines", "left_lines"]

_LINES_LOOKED_AT = 2_000
_LISTED_AT_ONCE = 500


class Left(NamedTuple):
    """A line's last job, and what it ended with."""

    line: LeftLine
    error_code: ErrorCode | None


class LeftLines(NamedTuple):
    """Those among the lines up to `looked_at`; there may be none."""

    lines: list[Left]
    looked_at: int


_ENDS = select(job_outcome.c.job_id, job_outcome.c.outcome, job_outcome.c.error_code).where(
    job_outcome.c.tenant_id == bindparam("of_tenant"), job_outcome.c.job_id.in_(bindparam("ids", expanding=True))
)


def left_lines(
    connection: Connection, tenant_id: str, batch_ids: Sequence[bytes], outcomes: Collection[Outcome], after_line: int
) -> LeftLines:
    """Of the next lines above `after_line` those that ended with one of the outcomes, in order.

    `batch_ids`: a batch, and all those whose lines were run again in it, so that it is known which were.
    """
    looked_at = after_line + _LINES_LOOKED_AT
    jobs = jobs_between(connection, tenant_id, batch_ids, after_line, looked_at)
    run_again = {one.redrive_of for one in jobs}
    last = [one for one in jobs if one.job_id not in run_again]
    found = []
    for start in range(0, len(last), _LISTED_AT_ONCE):
        part = last[start : start + _LISTED_AT_ONCE]
        rows = connection.execute(_ENDS, {"of_tenant": tenant_id, "ids": [one.job_id for one in part]})
        codes = {row.job_id: row.error_code for row in rows if row.outcome in outcomes}
        found += [Left(one, codes[one.job_id]) for one in part if one.job_id in codes]
    return LeftLines(found, looked_at)
