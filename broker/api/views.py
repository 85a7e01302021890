"""From what the broker knows to what the door answers: see `broker.domain.answers`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import msgspec

from broker.database.batches import BatchRecord, Counts
from broker.database.instances import InstanceRecord
from broker.database.plans import LanePlan
from broker.domain.answers import BatchState, InstanceView, JobError, JobState, LaneOut, LaneView
from broker.domain.ids import format_id
from broker.domain.instance import instance_hours_us
from broker.domain.lane import Lane, LaneState, PriceMeter
from broker.domain.money import NANO_PER_USD, PICO_PER_USD
from broker.domain.rerun import Rerun
from broker.health import Rest
from broker.ledger.standing import Standing
from broker.rules.pricing import accelerator_cost_nano_usd

__all__ = ["batch_state", "instance_view", "job_state", "lane_out", "lane_view", "price_text"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_US = 1_000_000


def job_state(job: Standing, late_us: int | None = None, lanes_out: tuple[LaneOut, ...] = ()) -> JobState:
    """A job, as it stands; `late_us` is when it is expected to end, if that is too late."""
    failed = job.error_code is not None or job.message
    return JobState(
        id=format_id("job", job.job_id),
        status=job.status,
        endpoint=job.endpoint,
        model=job.model,
        constraints=msgspec.json.decode(job.constraints),
        tags=msgspec.json.decode(job.tags) if job.tags else {},
        submitted_at=_iso_time(job.submitted_us),
        deadline=_iso_time(job.deadline_us),
        ended_at=_moment(job.ended_us),
        budget_usd=None if job.budget_nano_usd is None else _usd(job.budget_nano_usd),
        cost_usd=_usd(job.cost_nano_usd),
        unknown_usd=_usd(job.unknown_nano_usd),
        attempts=job.attempts,
        lane=job.lane,
        error=JobError(job.error_code, job.message) if failed else None,
        cancel_requested=job.cancel_requested,
        expected_late_at=None if late_us is None or job.ended_us is not None else _iso_time(late_us),
        batch_id=format_id("batch", job.batch_id) if job.batch_id else None,
        custom_id=job.custom_id,
        redrive_of=format_id("job", job.redrive_of) if job.redrive_of else None,
        lanes_out=lanes_out,
    )


def lane_out(lane: str, held: LaneState | None, rest: Rest | None, now_us: int) -> LaneOut | None:
    """Why this lane gets no work; None where it does."""
    if held is None and rest is None:
        return None
    return LaneOut(
        lane=lane,
        state=held or LaneState.OPEN,
        reason=rest.code if rest else None,
        since=_iso_time(now_us - int(rest.away_s * _US)) if rest else None,
        until=_iso_time(now_us + int(rest.left_s * _US)) if rest else None,
    )


def batch_state(record: BatchRecord, counts: Counts, late_us: int | None = None) -> BatchState:
    """A batch, as far as it is; `late_us` as for a job."""
    rerun = Rerun.parse(record.source_name)
    return BatchState(
        id=format_id("batch", record.batch_id),
        status=record.status,
        name=record.name,
        created_at=_iso_time(record.created_us),
        deadline=_iso_time(record.deadline_us),
        finished_at=_moment(record.finished_us),
        max_cost_usd=None if record.max_cost_nano_usd is None else _usd(record.max_cost_nano_usd),
        constraints=msgspec.json.decode(record.constraints),
        bytes_in=record.source_bytes,
        bytes_read=record.read_bytes,
        is_read=record.read_us is not None,
        lines_read=record.lines_in,
        refused_lines=record.refused_lines,
        accepted_jobs=record.accepted_jobs,
        succeeded=counts.succeeded,
        failed=counts.failed,
        cancelled=counts.cancelled,
        expired=counts.expired,
        attempts=counts.attempts,
        cost_usd=_usd(counts.cost_nano_usd),
        wasted_usd=_usd(counts.wasted_nano_usd),
        unknown_usd=_usd(counts.unknown_nano_usd),
        expected_late_at=_moment(late_us),
        rerun_of=format_id("batch", rerun.of_batch) if rerun else None,
    )


def lane_view(
    lane: Lane, slots: int, state: str, shards: int, rest: Rest | None, plan: LanePlan | None, now_us: int
) -> LaneView:
    """A lane with the slots of its live workers, the shards that it has, and the planner's word on it."""
    speeds = plan.speeds if plan else {}
    return LaneView(
        name=lane.name,
        state=state,
        resting=rest.code if rest else None,
        resting_since=_iso_time(now_us - int(rest.away_s * _US)) if rest else None,
        resting_until=_iso_time(now_us + int(rest.left_s * _US)) if rest else None,
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
        ready=plan.ready if plan else 0,
        desired=plan.desired if plan else 0,
        trouble=plan.trouble if plan else None,
        job_seconds={model: round(speed.job_s, 6) for model, speed in speeds.items()},
        is_slower=any(speed.is_slower for speed in speeds.values()),
    )


def instance_view(record: InstanceRecord, lane: Lane | None, now_us: int) -> InstanceView:
    """An instance; `lane` is its own at the price that holds, None where it has left the catalog."""
    up_us = instance_hours_us(record.state, record.started_us, record.stopped_us, record.last_seen_us, now_us)
    cost = None
    if lane is not None and lane.price.meter is PriceMeter.ACCELERATOR_HOUR:
        cost = accelerator_cost_nano_usd(lane.price, up_us)
    return InstanceView(
        id=format_id("instance", record.instance_id),
        lane=record.lane,
        state=record.state,
        resource_id=record.resource_id,
        worker_id=record.worker_id,
        slots=record.slots,
        started_at=_iso_time(record.started_us),
        ready_at=_moment(record.ready_us),
        draining_at=_moment(record.draining_us),
        stopped_at=_moment(record.stopped_us),
        last_seen_at=_iso_time(record.last_seen_us),
        seconds=up_us // _US,
        list_cost_nano_usd=cost,
    )


def price_text(lane: Lane) -> str:
    """Its price in words."""
    price = lane.price
    if price.instance_hour_pico_usd:
        return f"${_plain(Decimal(price.instance_hour_pico_usd) / PICO_PER_USD)}/hour"
    each = (price.input_token_pico_usd, price.output_token_pico_usd)
    per_million = " in, ".join(f"${_plain(Decimal(pico) * 1_000_000 / PICO_PER_USD)}" for pico in each)
    return f"{per_million} out per million tokens"


def _usd(nano: int) -> str:
    """Exact dollars."""
    return _plain(Decimal(nano) / NANO_PER_USD)


def _plain(amount: Decimal) -> str:
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _moment(moment_us: int | None) -> str | None:
    return None if moment_us is None else _iso_time(moment_us)


def _iso_time(moment_us: int) -> str:
    """ISO 8601 (UTC), to the millisecond."""
    return (_EPOCH + timedelta(microseconds=moment_us)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
