"""Where one job stands: asked for, waiting, with a lane, or ended, and with what.

All of it is for doors: each function takes the tenant first, and knows no other's jobs.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, bindparam, select

from broker.database.tables import cancel_request, job, result, work_group
from broker.database.whereabouts import lane_of
from broker.domain.outcome import Outcome
from broker.ledger.tables import attempt, job_outcome

__all__ = ["JobResult", "Standing", "find_result", "has_ended", "standing"]


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """A job and how far it is. `status` is its outcome once it has one, before that `waiting` or `running`.

    `lane` is where it runs, or where it ended. Costs are nano-USD over all attempts so far: what is known, and the most
    that it can have been besides.
    """

    job_id: bytes
    tenant_id: str
    batch_id: bytes | None
    custom_id: str | None
    endpoint: str
    model: str
    constraints: str
    submitted_us: int
    deadline_us: int
    budget_nano_usd: int | None
    tags: str | None
    redrive_of: bytes | None
    status: str
    error_code: str | None
    message: str | None
    ended_us: int | None
    cancel_requested: bool
    lane: str | None
    attempts: int
    cost_nano_usd: int
    unknown_nano_usd: int


class JobResult(msgspec.Struct, frozen=True):
    """What an ended job brought."""

    outcome: Outcome
    error_code: str | None
    status_code: int
    message: str
    body: bytes


# Built once: everyone who waits for a job's end asks both.
_OF_TENANT = (job.c.job_id == bindparam("of_job"), job.c.tenant_id == bindparam("of_tenant"))
_ENDED = (
    select(job_outcome.c.job_id)
    .select_from(job)
    .outerjoin(job_outcome, job_outcome.c.job_id == job.c.job_id)
    .where(*_OF_TENANT)
)
_RESULT = (
    select(job_outcome.c.outcome, job_outcome.c.error_code, result.c.status_code, result.c.message, result.c.body)
    .join(job, job.c.job_id == job_outcome.c.job_id)
    .outerjoin(result, result.c.job_id == job_outcome.c.job_id)
    .where(*_OF_TENANT)
)


def has_ended(connection: Connection, tenant_id: str, job_id: bytes) -> bool | None:
    """Whether the job has an outcome; None when this tenant has no such job."""
    row = connection.execute(_ENDED, {"of_job": job_id, "of_tenant": tenant_id}).one_or_none()
    return None if row is None else row[0] is not None


def standing(connection: Connection, tenant_id: str, job_id: bytes) -> Standing | None:
    """How far the job is; None when this tenant has no such job."""
    found = connection.execute(
        select(
            *(job.c[name] for name in ("job_id", "tenant_id", "batch_id", "custom_id", "submitted_us", "deadline_us")),
            *(job.c[name] for name in ("budget_nano_usd", "tags", "redrive_of")),
            *(work_group.c[name] for name in ("endpoint", "model", "constraints")),
            job_outcome.c.outcome,
            job_outcome.c.error_code,
            job_outcome.c.recorded_us.label("ended_us"),
            result.c.message,
            cancel_request.c.requested_us.is_not(None).label("cancel_requested"),
        )
        .join(work_group, work_group.c.group_id == job.c.group_id)
        .outerjoin(job_outcome, job_outcome.c.job_id == job.c.job_id)
        .outerjoin(result, result.c.job_id == job.c.job_id)
        .outerjoin(cancel_request, cancel_request.c.job_id == job.c.job_id)
        .where(job.c.job_id == job_id, job.c.tenant_id == tenant_id)
    ).one_or_none()
    if found is None:
        return None
    fields = dict(found._mapping)  # noqa: SLF001 (SQLAlchemy's public name for it)
    outcome = fields.pop("outcome")
    attempts, cost, unknown, last_lane = _attempts(connection, tenant_id, job_id)
    under_way = None if outcome else lane_of(connection, tenant_id, job_id)
    running_on = under_way.lane if under_way and under_way.is_claimed else None
    return Standing(
        status=outcome or ("running" if running_on else "waiting"),
        lane=last_lane if outcome else running_on,
        attempts=attempts,
        cost_nano_usd=cost,
        unknown_nano_usd=unknown,
        **fields | {"cancel_requested": bool(fields["cancel_requested"])},
    )


def find_result(connection: Connection, tenant_id: str, job_id: bytes) -> JobResult | None:
    """What this tenant's job brought; None when it has not ended, or doesn't exist."""
    row = connection.execute(_RESULT, {"of_job": job_id, "of_tenant": tenant_id}).one_or_none()
    if row is None:
        return None
    return JobResult(
        Outcome(row.outcome), row.error_code, row.status_code or 0, row.message or "", bytes(row.body or b"")
    )


def _attempts(connection: Connection, tenant_id: str, job_id: bytes) -> tuple[int, int, int, str | None]:
    """How many there were, what they cost, and at most besides, and the lane of the last."""
    rows = connection.execute(
        select(attempt.c.cost_nano_usd, attempt.c.cost_upper_nano_usd, attempt.c.lane)
        # The job says whose it is: by the attempt's own tenant PostgreSQL might read all that the tenant ever ran.
        .join(job, job.c.job_id == attempt.c.job_id)
        .where(job.c.job_id == job_id, job.c.tenant_id == tenant_id)
        .order_by(attempt.c.attempt_number, attempt.c.recorded_us)
    ).all()
    cost = sum(row.cost_nano_usd for row in rows)
    unknown = sum(row.cost_upper_nano_usd for row in rows) - cost
    return len(rows), cost, unknown, rows[-1].lane if rows else None
