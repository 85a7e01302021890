"""Statements on requests to cancel single jobs: kept until the job has ended, however it ends.

`request` is for doors, and knows no other tenant's jobs; the others are for the broker's own loops.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import BigInteger, Connection, and_, delete, literal, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from broker.database.tables import cancel_request, job, ready, shard_span
from broker.domain.ids import id_at, id_offset
from broker.domain.job import WaitingSpan
from broker.domain.shard import Bitmap

__all__ = ["cancelled_in_shard", "forget", "pending", "request", "waiting_span_of"]


def request(connection: Connection, tenant_id: str, job_id: bytes, now_us: int) -> None:
    """Ask that the tenant's job be cancelled; asking twice is asking once."""
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    theirs = select(job.c.job_id, literal(now_us, BigInteger)).where(
        job.c.job_id == job_id, job.c.tenant_id == tenant_id
    )
    asked = kind.insert(cancel_request).from_select(["job_id", "requested_us"], theirs)
    connection.execute(asked.on_conflict_do_nothing())


def pending(connection: Connection, limit: int) -> list[bytes]:
    """The jobs whose requests are the oldest."""
    query = select(cancel_request.c.job_id).order_by(cancel_request.c.requested_us, cancel_request.c.job_id)
    return list(connection.execute(query.limit(limit)).scalars())


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


def waiting_span_of(connection: Connection, job_id: bytes) -> WaitingSpan | None:
    """The waiting span that holds the job; None when it doesn't wait."""
    first_of_span = job_id[:12] + b"\0\0\0\0"
    row = connection.execute(
        select(ready)
        .where(and_(ready.c.first_job_id <= job_id, ready.c.first_job_id >= first_of_span))
        .order_by(ready.c.first_job_id.desc())
        .limit(1)
    ).one_or_none()
    if row is None or id_offset(row.first_job_id, job_id) >= row.jobs_count:
        return None
    return WaitingSpan(*row)
