"""The whole story of one job: what was asked, every attempt, why it ran where it ran, and what that cost.

Each question takes the tenant whose jobs it may see. None is any tenant's: for whoever reads the database itself, and
for no door.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, select

from broker.database import lane_health, lane_states, plans
from broker.database.tables import batch, job, shard, work_group
from broker.database.whereabouts import Whereabouts, lane_of
from broker.domain.ids import format_id
from broker.health import LaneFault
from broker.ledger.digests import Decisions
from broker.ledger.tables import attempt, job_outcome, price
from broker.rules.decisions import Candidate, Removed

__all__ = ["AttemptStory", "JobStory", "explain", "find_job", "where_is"]


class AttemptStory(msgspec.Struct, kw_only=True):
    """One attempt, with the decision behind it. What nobody knows, or its version of the ledger didn't say, is None.

    `decision_proven`: the ledger's digest is of the decision as it is told here; None where there is none to compare.
    """

    attempt_id: str
    number: int
    outcome: str
    error_code: str | None
    lane: str
    provider: str
    region: str
    accelerator: str
    market: str
    engine: str
    stand_in: bool
    worker: str
    endpoint: str | None
    why: str
    decision_proven: bool | None
    plan_generation: int | None
    candidates: tuple[Candidate, ...]
    removed: tuple[Removed, ...]
    price_version: str
    price_source: str
    list_cost_nano_usd: int
    cost_nano_usd: int
    cost_upper_nano_usd: int
    cost_basis: str
    charged_nano_usd: int | None
    currency: str | None
    usage_basis: str | None
    input_tokens: int | None
    cached_input_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None
    accelerator_us: int
    dispatched_us: int
    claimed_us: int | None
    due_us: int | None
    started_us: int | None
    ended_us: int
    queue_us: int
    run_us: int
    ledger_row: str


class JobStory(msgspec.Struct, kw_only=True):
    """A job from its submission to its end."""

    job_id: str
    batch_id: str | None
    custom_id: str | None
    line_number: int | None
    tenant: str
    model: str
    endpoint: str
    constraints: str
    submitted_us: int
    deadline_us: int
    tags: dict[str, str]
    outcome: str | None
    error_code: str | None
    cost_nano_usd: int
    charged_nano_usd: int | None
    wasted_nano_usd: int
    unknown_upper_nano_usd: int
    attempts: list[AttemptStory]


def find_job(connection: Connection, tenant_id: str | None, custom_id: str) -> list[bytes]:
    """The jobs with this custom_id, those of the newest batch first, at most ten."""
    # One look into the index for each batch, whatever the planner thinks: jobs are indexed by batch and name alone.
    named = select(job.c.job_id).where(job.c.batch_id == batch.c.batch_id, job.c.custom_id == custom_id)
    theirs = [] if tenant_id is None else [batch.c.tenant_id == tenant_id]
    found = select(named.scalar_subquery().label("job_id"), batch.c.created_us).where(*theirs).subquery()
    query = select(found.c.job_id).where(found.c.job_id.is_not(None)).order_by(found.c.created_us.desc())
    return list(connection.execute(query.limit(10)).scalars())


def _theirs(tenant_id: str | None) -> list[ColumnElement[bool]]:
    return [] if tenant_id is None else [job.c.tenant_id == tenant_id]


def explain(connection: Connection, tenant_id: str | None, job_id: bytes) -> JobStory | None:
    """The story of this job; None when there is no such job."""
    found = connection.execute(
        select(job, work_group.c.model, work_group.c.endpoint, work_group.c.constraints)
        .join(work_group, work_group.c.group_id == job.c.group_id)
        .where(job.c.job_id == job_id, *_theirs(tenant_id))
    ).one_or_none()
    if found is None:
        return None
    ended = connection.execute(
        select(job_outcome)
        .join(job, job.c.job_id == job_outcome.c.job_id)
        .where(job_outcome.c.job_id == job_id, *_theirs(tenant_id))
    ).one_or_none()
    rows = connection.execute(
        select(attempt, price.c.source, shard.c.reason)
        .select_from(attempt)
        .join(job, job.c.job_id == attempt.c.job_id)
        .outerjoin(price, price.c.version == attempt.c.price_version)
        .outerjoin(shard, shard.c.shard_id == attempt.c.shard_id)
        .where(attempt.c.job_id == job_id, *_theirs(tenant_id))
        .order_by(attempt.c.attempt_number, attempt.c.recorded_us)
    )
    attempts = [_attempt(connection, row) for row in rows]
    return JobStory(
        job_id=format_id("job", job_id),
        batch_id=format_id("batch", found.batch_id) if found.batch_id else None,
        custom_id=found.custom_id,
        line_number=found.line_number,
        tenant=found.tenant_id,
        model=found.model,
        endpoint=found.endpoint,
        constraints=found.constraints,
        submitted_us=found.submitted_us,
        deadline_us=found.deadline_us,
        tags=msgspec.json.decode(found.tags, type=dict[str, str]) if found.tags else {},
        outcome=ended.outcome if ended else None,
        error_code=ended.error_code if ended else None,
        cost_nano_usd=sum(one.cost_nano_usd for one in attempts),
        charged_nano_usd=_charged(attempts),
        wasted_nano_usd=sum(one.cost_nano_usd for one in attempts if one.outcome != "succeeded"),
        unknown_upper_nano_usd=sum(one.cost_upper_nano_usd - one.cost_nano_usd for one in attempts),
        attempts=attempts,
    )


def _charged(attempts: list[AttemptStory]) -> int | None:
    """What the tenant is charged for all of them; None where one is of before the ledger said so."""
    charged = [attempt.charged_nano_usd for attempt in attempts]
    return None if None in charged else sum(amount for amount in charged if amount is not None)


def _attempt(connection: Connection, row: Any) -> AttemptStory:  # noqa: ANN401 (a row of any columns)
    decision = plans.find(connection, row.assignment_id) if row.assignment_id else None
    digest = None if row.reason is None else Decisions().of(connection, row)
    fields = {name: getattr(row, name) for name in AttemptStory.__struct_fields__ if hasattr(row, name)}
    fields |= {
        "attempt_id": format_id("attempt", row.attempt_id),
        "number": row.attempt_number,
        "worker": row.worker_id,
        "why": row.reason or "its shard's record has been pruned",
        "decision_proven": row.decision_digest == digest if row.decision_digest and digest else None,
        "plan_generation": decision.generation if decision else None,
        "candidates": decision.plan.candidates if decision else (),
        "removed": decision.plan.removed if decision else (),
        "price_source": row.source or "",
        "ledger_row": f"{row.stream_id.hex()}:{row.seq}",
    }
    return AttemptStory(**fields)


def where_is(connection: Connection, tenant_id: str | None, job_id: bytes, now_us: int | None = None) -> str:
    """In words, where a job without an outcome is; of one that waits, which lanes it could have are out, and why.

    Without `now_us` a lane counts as at rest for as long as that was noted.
    """
    match lane_of(connection, tenant_id, job_id):
        case Whereabouts(lane, is_claimed=True):
            return f"running on lane {lane}"
        case Whereabouts(lane):
            return f"sent to lane {lane}"
        case None:
            return "; ".join(["waiting for a lane with room", *_lanes_out(connection, tenant_id, job_id, now_us)])


def _lanes_out(connection: Connection, tenant_id: str | None, job_id: bytes, now_us: int | None) -> Iterator[str]:
    """Of the lanes that may do the job: those that get no work, each with its reason."""
    plan = plans.of_job(connection, tenant_id, job_id)
    if plan is None:
        return
    if not plan.candidates:
        yield "no lane may do it: " + ", ".join(f"{one.lane} ({one.filter})" for one in plan.removed)
    held, faults = lane_states.held_lanes(connection), lane_health.kept_health(connection)
    for lane in sorted(candidate.lane for candidate in plan.candidates):
        if (state := held.get(lane)) is not None:
            yield f"{lane} is {state}"
        elif (fault := faults.get(lane)) is not None and fault.health.back_s is None:
            yield f"{lane} rests: {_rest_words(fault, now_us)}"


def _rest_words(fault: LaneFault, now_us: int | None) -> str:
    since, until = (_clock_time(moment_s) for moment_s in (fault.health.since_s, fault.health.rests_until_s))
    if now_us is not None and fault.health.rests_until_s * 1_000_000 <= now_us:
        return f"{fault.code} since {since}, and a job may try it since {until}"
    return f"{fault.code} since {since}, and a job may try it at {until}"


def _clock_time(moment_s: float) -> str:
    return datetime.fromtimestamp(moment_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
