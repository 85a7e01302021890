"""Statements on batches that run another's lines again, and on the lines that are left to run.

A batch, the one that runs its lines again, the one after that, and so on: they have one source, and make one output.
All take the tenant first, and know no other's.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, bindparam, func, select

from broker.database import batches
from broker.database.batches import BatchRecord
from broker.database.tables import batch, batch_refusal, job, payload, work_group
from broker.domain.rerun import Rerun

__all__ = ["LeftLine", "bodies_of", "chain", "jobs_between", "last_line", "newest_of"]

_LISTED_AT_ONCE = 500


class LeftLine(msgspec.Struct, frozen=True):
    """A line's job of one of the batches; `redrive_of` is the job that it runs again, where it does."""

    job_id: bytes
    line_number: int
    custom_id: str
    body_bytes: int
    endpoint: str
    redrive_of: bytes | None


_FAMILY = (
    select(batch.c.batch_id, batch.c.source_name)
    .where(batch.c.tenant_id == bindparam("of_tenant"), batch.c.source_digest == bindparam("of_source"))
    .order_by(batch.c.created_us)
)
# Bounded on both sides: without statistics, PostgreSQL would read and sort the whole rest of the batches for each page.
_JOBS = (
    select(job.c.job_id, job.c.line_number, job.c.custom_id, job.c.body_bytes, work_group.c.endpoint, job.c.redrive_of)
    .join(work_group, work_group.c.group_id == job.c.group_id)
    .where(
        job.c.tenant_id == bindparam("of_tenant"),
        job.c.batch_id.in_(bindparam("of_batches", expanding=True)),
        job.c.line_number > bindparam("after_line"),
        job.c.line_number <= bindparam("last_line"),
    )
    .order_by(job.c.line_number)
)
_BODIES = (
    select(payload.c.job_id, payload.c.body)
    .join(job, job.c.job_id == payload.c.job_id)
    .where(
        job.c.tenant_id == bindparam("of_tenant"),
        payload.c.job_id.in_(bindparam("ids", expanding=True)),
        payload.c.body.is_not(None),
    )
)


def newest_of(connection: Connection, tenant_id: str, record: BatchRecord) -> BatchRecord:
    """The last that runs again the lines of this one, or those of one that did; itself where none does."""
    of_batch = {
        rerun.of_batch: batch_id
        for batch_id, name in _family(connection, tenant_id, record.source_digest)
        if (rerun := Rerun.parse(name))
    }
    newest = record.batch_id
    while newest in of_batch:
        newest = of_batch[newest]
    return batches.find(connection, tenant_id, newest) or record


def chain(connection: Connection, tenant_id: str, record: BatchRecord) -> list[BatchRecord]:
    """The batch, then the one whose lines it runs again, and so on to the first, which was made of a file."""
    found = [record]
    while (rerun := Rerun.parse(found[-1].source_name)) and (
        before := batches.find(connection, tenant_id, rerun.of_batch)
    ):
        found.append(before)
    return found


def last_line(connection: Connection, tenant_id: str, batch_id: bytes) -> int:
    """The highest number of the tenant's batch's lines that were taken in; 0 where none was."""
    accepted = select(func.max(job.c.line_number)).where(job.c.tenant_id == tenant_id, job.c.batch_id == batch_id)
    refused = (
        select(func.max(batch_refusal.c.line_number))
        .join(batch, batch.c.batch_id == batch_refusal.c.batch_id)
        .where(batch.c.tenant_id == tenant_id, batch_refusal.c.batch_id == batch_id)
    )
    return max(connection.execute(query).scalar_one() or 0 for query in (accepted, refused))


def jobs_between(
    connection: Connection, tenant_id: str, batch_ids: Sequence[bytes], after_line: int, last_line: int
) -> list[LeftLine]:
    """The jobs of these batches with such line numbers, in their order."""
    asked = {"of_tenant": tenant_id, "of_batches": list(batch_ids), "after_line": after_line, "last_line": last_line}
    return [LeftLine(*row) for row in connection.execute(_JOBS, asked)]


def bodies_of(connection: Connection, tenant_id: str, job_ids: Sequence[bytes]) -> dict[bytes, bytes]:
    """The requests of these jobs, as far as they are kept."""
    found: dict[bytes, bytes] = {}
    for start in range(0, len(job_ids), _LISTED_AT_ONCE):
        asked = {"of_tenant": tenant_id, "ids": list(job_ids[start : start + _LISTED_AT_ONCE])}
        found |= {row.job_id: row.body for row in connection.execute(_BODIES, asked)}
    return found


def _family(connection: Connection, tenant_id: str, source_digest: bytes) -> list[tuple[bytes, str]]:
    rows = connection.execute(_FAMILY, {"of_tenant": tenant_id, "of_source": source_digest})
    return [(row.batch_id, row.source_name) for row in rows]
