"""Statements on requests to cancel single jobs: kept until the job has ended, however it ends.

`request` is for doors, and knows no other tenant's jobs; the others are for the broker's own loops.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import BigInteger, Connection, bindparam, delete, literal, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from broker.database import ready
from broker.database.tables import cancel_request, job, shard_span
from broker.database.tables import ready as ready_table
from broker.database.types import Id
from broker.domain.ids import id_at, id_offset, span_of
from broker.domain.job import WaitingSpan
from broker.domain.shard import Bitmap

__all__ = ["cancelled_in_shard", "forget", "pending", "request", "waiting_spans"]


_PENDING = (
    select(cancel_request.c.job_id)
    .where(cancel_request.c.job_id > bindparam("after", type_=Id))
    .order_by(cancel_request.c.job_id)
    .limit(bindparam("jobs_max"))
)
# The one that begins next before the job, if any: it holds the job, or none does.
_SPAN_BEFORE = select(
    cancel_request.c.job_id,
    select(ready_table.c.first_job_id)
    .where(ready_table.c.first_job_id <= cancel_request.c.job_id)
    .order_by(ready_table.c.first_job_id.desc())
    .limit(1)
    .scalar_subquery(),
).where(cancel_request.c.job_id.in_(bindparam("job_ids", expanding=True)))


def request(connection: Connection, tenant_id: str, job_id: bytes, now_us: int) -> None:
    """Ask that the tenant's job be cancelled; asking twice is asking once."""
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    theirs = select(job.c.job_id, literal(now_us, BigInteger)).where(
        job.c.job_id == job_id, job.c.tenant_id == tenant_id
    )
    asked = kind.insert(cancel_request).from_select(["job_id", "requested_us"], theirs)
    connection.execute(asked.on_conflict_do_nothing())


def pending(connection: Connection, after: bytes, limit: int) -> list[bytes]:
    """The next jobs by id with a request."""
    asked = {"after": after, "jobs_max": limit}
    return list(connection.execute(_PENDING, asked).scalars())


def forget(connection: Connection, job_ids: Sequence[bytes]) -> None:
    """These jobs have ended."""
    if job_ids:
        connection.execute(delete(cancel_request).where(cancel_request.c.job_id.in_(list(job_ids))))


def cancelled_in_shard(connection: Connection, shard_id: bytes) -> bytes:
    """The bitmap of the shard's indices whose jobs are to be cancelled; empty when there are none."""
    if connection.execute(select(cancel_request.c.job_id).limit(1)).one_or_none() is None:
        return b""
    spans = connection.execute(
        select(shard_span.c.first_index, shard_span.c.first_job_id, shard_span.c.jobs_count).where(
            shard_span.c.shard_id == shard_id
        )
    ).all()
    if not spans:
        return b""
    inside = (
        cancel_request.c.job_id.between(span.first_job_id, id_at(span.first_job_id, span.jobs_count - 1))
        for span in spans
    )
    asked = connection.execute(select(cancel_request.c.job_id).where(or_(*inside))).scalars()
    found = Bitmap()
    for job_id in asked:
        for span in spans:
            if job_id[:12] == span.first_job_id[:12] and (
                0 <= (offset := id_offset(span.first_job_id, job_id)) < span.jobs_count
            ):
                found.add(span.first_index + offset)
    return found.to_bytes()


def waiting_spans(connection: Connection, job_ids: Sequence[bytes]) -> dict[bytes, WaitingSpan]:
    """The waiting span that holds each of these jobs that have a request; those that don't wait are left out."""
    before = connection.execute(_SPAN_BEFORE, {"job_ids": list(job_ids)}).all()
    first_ids = sorted({first for _, first in before if first is not None})
    spans = {span.first_job_id: span for span in ready.load(connection, first_ids)}
    return {
        job_id: span
        for job_id, first in before
        if (span := spans.get(first))
        and span_of(job_id) == span_of(first)
        and id_offset(first, job_id) < span.jobs_count
    }
