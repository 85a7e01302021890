"""What a batch was expected to cost when it was first planned, beside what it cost."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, func, select

from broker.database.batches import get, progress
from broker.database.planning_tables import assignment
from broker.database.tables import job
from broker.rules.decisions import Candidate

__all__ = ["Quoted", "quoted"]


class Quoted(msgspec.Struct, frozen=True, kw_only=True):
    """`quoted_nano_usd` for all its jobs at the lane that came first in each group's first plan; None before that.

    `cost_nano_usd` is the known cost of all its attempts so far, what was wasted among it; `unknown_nano_usd` the most
    that they can have cost besides.
    """

    jobs: int
    ended: int
    quoted_nano_usd: int | None
    cost_nano_usd: int
    wasted_nano_usd: int
    unknown_nano_usd: int


def quoted(connection: Connection, batch_id: bytes) -> Quoted | None:
    """None when there is no such batch."""
    record = get(connection, batch_id)
    if record is None:
        return None
    counts = progress(connection, batch_id)
    rows = connection.execute(
        select(job.c.group_id, func.count()).where(job.c.batch_id == batch_id).group_by("group_id")
    )
    costs = [(_first_cost(connection, group_id), int(count)) for group_id, count in rows]
    known = all(cost is not None for cost, _ in costs)
    return Quoted(
        jobs=record.accepted_jobs,
        ended=counts.succeeded + counts.failed + counts.cancelled + counts.expired,
        quoted_nano_usd=sum((cost or 0) * count for cost, count in costs) if known else None,
        cost_nano_usd=counts.cost_nano_usd,
        wasted_nano_usd=counts.wasted_nano_usd,
        unknown_nano_usd=counts.unknown_nano_usd,
    )


def _first_cost(connection: Connection, group_id: bytes) -> int | None:
    """What a job of the group was expected to cost where its first plan wanted it."""
    text = connection.execute(
        select(assignment.c.candidates)
        .where(assignment.c.group_id == group_id)
        .order_by(assignment.c.generation)
        .limit(1)
    ).scalar_one_or_none()
    found = msgspec.json.decode(text, type=list[Candidate]) if text else []
    return found[0].expected_job_cost_nano_usd if found else None
