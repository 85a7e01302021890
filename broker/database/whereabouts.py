"""Which lane has a job, of a tenant's or, for whoever reads the database itself, of anybody's."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, select

from broker.database.tables import shard, shard_span
from broker.domain.ids import id_offset, span_of
from broker.domain.shard import Bitmap, ShardState

__all__ = ["Whereabouts", "lane_of"]


class Whereabouts(NamedTuple):
    """The lane that a job's shard was sent to, and whether a worker has claimed it."""

    lane: str
    is_claimed: bool


def lane_of(connection: Connection, tenant_id: str | None, job_id: bytes) -> Whereabouts | None:
    """Where the job is under way; None when it waits, or has ended. All tenants' where `tenant_id` is None.

    A shard has the job no longer once its attempt there was recorded: it may be in another by now.
    """
    rows = connection.execute(
        select(
            shard_span.c.first_job_id,
            shard_span.c.first_index,
            shard_span.c.jobs_count,
            shard.c.lane,
            shard.c.state,
            shard.c.recorded,
        )
        .join(shard, shard.c.shard_id == shard_span.c.shard_id)
        .where(
            shard_span.c.first_job_id.between(span_of(job_id) + bytes(4), job_id),
            *([] if tenant_id is None else [shard.c.tenant_id == tenant_id]),
            shard.c.closed_us.is_(None),
            shard.c.state.in_([ShardState.SENT, ShardState.RUNNING]),
        )
    )
    found = None
    for first_job_id, first_index, jobs_count, lane, state, recorded in rows:
        offset = id_offset(first_job_id, job_id)
        if offset < jobs_count and first_index + offset not in Bitmap(recorded):
            if state == ShardState.RUNNING:
                return Whereabouts(lane, is_claimed=True)
            found = Whereabouts(lane, is_claimed=False)
    return found
