"""What was asked of jobs that end, read for many at once: their tags, and what the digest of a submission is of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, select

from broker.database.tables import job
from broker.domain.ids import id_offset, span_of

__all__ = ["TAGS", "submitted"]

_COLUMNS = (
    job.c.job_id,
    job.c.line_number,
    job.c.custom_id,
    job.c.submitted_us,
    job.c.deadline_us,
    job.c.budget_nano_usd,
    job.c.tags,
    job.c.redrive_of,
)
TAGS = _COLUMNS.index(job.c.tags)
"""Where a row has its tags."""

_RANGE: Select[Any] = select(*_COLUMNS).where(job.c.job_id.between(bindparam("first"), bindparam("last")))
_LISTED: Select[Any] = select(*_COLUMNS).where(job.c.job_id.in_(bindparam("job_ids", expanding=True)))
_RANGE_JOBS_MIN = 16
_LISTED_AT_ONCE = 500


def submitted(connection: Connection, job_ids: Iterable[bytes]) -> dict[bytes, Row[Any]]:
    """These jobs' rows, by id, perhaps among others; those that are gone are left out.

    The jobs of a shard follow on each other, so they are read as a range; single ones are listed.
    """
    spans: dict[bytes, list[bytes]] = defaultdict(list)
    for job_id in job_ids:
        spans[span_of(job_id)].append(job_id)
    found: dict[bytes, Row[Any]] = {}
    listed: list[bytes] = []
    for ids in spans.values():
        first, last = min(ids), max(ids)
        if len(ids) < max(_RANGE_JOBS_MIN, id_offset(first, last) // 4):
            listed += ids
        else:
            found |= {row[0]: row for row in connection.execute(_RANGE, {"first": first, "last": last})}
    for start in range(0, len(listed), _LISTED_AT_ONCE):
        part = listed[start : start + _LISTED_AT_ONCE]
        found |= {row[0]: row for row in connection.execute(_LISTED, {"job_ids": part})}
    return found
