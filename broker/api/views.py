"""What the door answers with: times as ISO 8601 (UTC), money as exact decimal dollars in text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec

from broker.database.batches import BatchRecord, Counts
from broker.database.plans import LanePlan
from broker.domain.ids import format_id
from broker.domain.lane import Lane
from broker.domain.money import NANO_PER_USD, PICO_PER_USD
from broker.ledger.standing import Standing

__all__ = ["BatchView", "JobView", "LaneView", "batch_view", "iso_time", "job_view", "lane_view", "price_text", "usd"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class JobView(msgspec.Struct, kw_only=True):
    """A job. `expected_late_at`: when it is expected to end, if that is after its deadline."""

    id: str
    object: str = "job"
    status: str
    endpoint: str
    model: str
    constraints: dict[str, Any]
    tags: dict[str, str]
    submitted_at: str
    deadline: str
    ended_at: str | None
    budget_usd: str | None
    cost_usd: str
    attempts: int
    lane: str | None
    error: dict[str, str | None] | None
    cancel_requested: bool
    expected_late_at: str | None
    batch_id: str | None
    custom_id: str | None
    redrive_of: str | None


class BatchView(msgspec.Struct, kw_only=True):
    """A batch. `expected_late_at`: when it is expected to end, if that is too late.

    `lines_read` and the counts grow while it is read and run.
    """

    id: str
    object: str = "batch"
    status: str
    name: str | None
    created_at: str
    deadline: str
    finished_at: str | None
    max_cost_usd: str | None
    constraints: dict[str, Any]
    bytes_in: int
    bytes_read: int
    is_read: bool
    lines_read: int
    refused_lines: int
    accepted_jobs: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    attempts: int
    cost_usd: str
    wasted_usd: str
    expected_late_at: str | None


class LaneView(msgspec.Struct, kw_only=True):
    """A lane. `state`: open, paused, draining, or drained once a draining lane has nothing left.

    `resting`: the fault for which it gets no work for a while, whatever its state. `slots`: shards that its live
    workers run at once. As the planner last saw it: instances `ready`, and `desired`; `trouble`, for which it gets no
    work; `job_seconds` of a busy instance for one job of a model, as learned; `is_slower`: much more than usual.
    """

    name: str
    state: str
    resting: str | None
    provider: str
    region: str
    accelerator: str
    market: str
    models: tuple[str, ...]
    slots: int
    shards: int
    price: str
    price_source: str
    stand_in: bool
    ready: int
    desired: int
    trouble: str | None
    job_seconds: dict[str, float]
    is_slower: bool


def job_view(found: Standing, late_us: int | None = None) -> JobView:
    """A job, as it stands; `late_us` is when it is expected to end, if that is too late."""
    failed = found.error_code is not None or found.message
    return JobView(
        id=format_id("job", found.job_id),
        status=found.status,
        endpoint=found.endpoint,
        model=found.model,
        constraints=msgspec.json.decode(found.constraints),
        tags=msgspec.json.decode(found.tags) if found.tags else {},
        submitted_at=iso_time(found.submitted_us),
        deadline=iso_time(found.deadline_us),
        ended_at=None if found.ended_us is None else iso_time(found.ended_us),
        budget_usd=None if found.budget_nano_usd is None else usd(found.budget_nano_usd),
        cost_usd=usd(found.cost_nano_usd),
        attempts=found.attempts,
        lane=found.lane,
        error={"code": found.error_code, "message": found.message} if failed else None,
        cancel_requested=found.cancel_requested,
        expected_late_at=None if late_us is None or found.ended_us is not None else iso_time(late_us),
        batch_id=format_id("batch", found.batch_id) if found.batch_id else None,
        custom_id=found.custom_id,
        redrive_of=format_id("job", found.redrive_of) if found.redrive_of else None,
    )


def batch_view(record: BatchRecord, counts: Counts, late_us: int | None = None) -> BatchView:
    """A batch, as far as it is; `late_us` as for a job."""
    return BatchView(
        id=format_id("batch", record.batch_id),
        status=record.status,
        name=record.name,
        created_at=iso_time(record.created_us),
        deadline=iso_time(record.deadline_us),
        finished_at=None if record.finished_us is None else iso_time(record.finished_us),
        max_cost_usd=None if record.max_cost_nano_usd is None else usd(record.max_cost_nano_usd),
        constraints=msgspec.json.decode(record.constraints),
        bytes_in=record.source_bytes,
        bytes_read=record.read_bytes,
        is_read=record.read_us is not None,
        lines_read=record.read_lines,
        refused_lines=record.refused_lines,
        accepted_jobs=record.accepted_jobs,
        succeeded=counts.succeeded,
        failed=counts.failed,
        cancelled=counts.cancelled,
        expired=counts.expired,
        attempts=counts.attempts,
        cost_usd=usd(counts.cost_nano_usd),
        wasted_usd=usd(counts.wasted_nano_usd),
        expected_late_at=None if late_us is None else iso_time(late_us),
    )


def lane_view(lane: Lane, slots: int, state: str, shards: int, resting: str | None, said: LanePlan | None) -> LaneView:
    """A lane with the slots of its live workers, the shards that it has, and the planner's word on it."""
    speeds = said.speeds if said else {}
    return LaneView(
        name=lane.name,
        state=state,
        resting=resting,
        provider=lane.provider,
        region=lane.region,
        accelerator=lane.accelerator,
        market=lane.market,
        models=lane.engine.models,
        slots=slots,
        shards=shards,
        price=price_text(lane),
        price_source=lane.price.source,
        stand_in=lane.stand_in,
        ready=said.ready if said else 0,
        desired=said.desired if said else 0,
        trouble=said.trouble if said else None,
        job_seconds={model: round(speed.job_s, 6) for model, speed in speeds.items()},
        is_slower=any(speed.is_slower for speed in speeds.values()),
    )


def price_text(lane: Lane) -> str:
    """Its price in words."""
    price = lane.price
    if price.instance_hour_pico_usd:
        return f"${_plain(Decimal(price.instance_hour_pico_usd) / PICO_PER_USD)}/hour"
    each = (price.input_token_pico_usd, price.output_token_pico_usd)
    per_million = " in, ".join(f"${_plain(Decimal(pico) * 1_000_000 / PICO_PER_USD)}" for pico in each)
    return f"{per_million} out per million tokens"


def usd(nano: int) -> str:
    """Exact dollars."""
    return _plain(Decimal(nano) / NANO_PER_USD)


def _plain(amount: Decimal) -> str:
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def iso_time(moment_us: int) -> str:
    """ISO 8601 (UTC), to the millisecond."""
    return (_EPOCH + timedelta(microseconds=moment_us)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
