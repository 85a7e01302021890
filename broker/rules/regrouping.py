"""Jobs of a shard that go back to waiting: what they take along, merged into as few spans as say the same."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from broker.domain.ids import id_at
from broker.domain.job import WaitingSpan
from broker.domain.shard import ShardSpan
from broker.rules.settling import Retry

__all__ = ["FAILED_LANES_MAX", "another_try", "failed_lanes", "refusing_lanes", "regroup", "waiting_job"]

FAILED_LANES_MAX = 16
"""So many lanes that failed a job are kept by name, the first by the alphabet.

Those that refused it are all kept, however many: a forgotten one would be asked again, and refuse at once, for ever.
"""

_REFUSED = "!"
"""What follows the name of a lane that is not asked again. No lane's name holds it."""


def waiting_job(span: ShardSpan, index: int, group_id: bytes, batch_id: bytes | None) -> WaitingSpan:
    """The job at this index of the span's shard, as it waited before."""
    whole = WaitingSpan(
        span.first_job_id,
        span.jobs_count,
        group_id,
        batch_id,
        span.deadline_us,
        span.body_bytes_max,
        span.attempt_number,
        span.failures,
        span.crashes,
        span.alone,
        failed_lanes=span.failed_lanes,
        preemptions=span.preemptions,
        beginning=span.beginning,
        beginnings=span.beginnings,
        submitted_us=span.submitted_us,
    )
    return whole.part(index - span.first_index, 1)


def another_try(waiting: WaitingSpan, lane: str, retry: Retry, now_us: int) -> WaitingSpan:
    """The job after an attempt on this lane that it has to repeat."""
    return msgspec.structs.replace(
        waiting,
        attempt_number=waiting.attempt_number + 1,
        failures=retry.failures,
        crashes=retry.crashes,
        alone=retry.alone,
        not_before_us=now_us + int(retry.delay_seconds * 1_000_000) if retry.delay_seconds else 0,
        failed_lanes=_with_lane(waiting.failed_lanes, lane, retry),
        preemptions=waiting.preemptions + retry.was_preempted,
    )


def failed_lanes(span: WaitingSpan | ShardSpan) -> tuple[str, ...]:
    """The lanes that failed the span's jobs so far, or refused them, sorted."""
    return tuple(word.removesuffix(_REFUSED) for word in span.failed_lanes.split()) if span.failed_lanes else ()


def refusing_lanes(span: WaitingSpan | ShardSpan) -> tuple[str, ...]:
    """Those of them that can't do its jobs, or said so: they are not asked again."""
    words = span.failed_lanes.split() if span.failed_lanes else ()
    return tuple(word.removesuffix(_REFUSED) for word in words if word.endswith(_REFUSED))


def _with_lane(lanes: str | None, lane: str, retry: Retry) -> str | None:
    """As kept: sorted names, which hold no space, with one between them; a lane that refused has its mark."""
    if not (retry.lane_failed or retry.lane_refused):
        return lanes
    known = set((lanes or "").split())
    if lane + _REFUSED in known:
        return lanes
    if retry.lane_refused:
        known = known - {lane} | {lane + _REFUSED}
    else:
        known.add(lane)
    refusing = sorted(word for word in known if word.endswith(_REFUSED))
    others = sorted(word for word in known if not word.endswith(_REFUSED))
    return " ".join(sorted(refusing + others[: max(0, FAILED_LANES_MAX - len(refusing))]))


def regroup(spans: Iterable[WaitingSpan]) -> list[WaitingSpan]:
    """The same jobs in the fewest spans: neighbours by id that agree, but for body size and beginning, become one."""
    merged: list[WaitingSpan] = []
    for span in sorted(spans, key=lambda span: span.first_job_id):
        if merged and _continues(merged[-1], span):
            last = merged[-1]
            merged[-1] = msgspec.structs.replace(
                last,
                jobs_count=last.jobs_count + span.jobs_count,
                body_bytes_max=max(last.body_bytes_max, span.body_bytes_max),
                beginnings=_beginnings(last, span),
            )
        else:
            merged.append(span)
    return merged


def _continues(last: WaitingSpan, span: WaitingSpan) -> bool:
    if last.first_job_id[:12] != span.first_job_id[:12]:
        return False
    moved = msgspec.structs.replace(
        span,
        first_job_id=last.first_job_id,
        jobs_count=last.jobs_count,
        body_bytes_max=last.body_bytes_max,
        beginning=last.beginning,
        beginnings=last.beginnings,
    )
    return id_at(last.first_job_id, last.jobs_count) == span.first_job_id and moved == last


def _beginnings(last: WaitingSpan, span: WaitingSpan) -> int:
    """How many kinds the two have together, at most: a beginning that is not known may be any."""
    kinds = (last.beginnings, span.beginnings)
    if kinds == (0, 0) or (kinds == (1, 1) and last.beginning == span.beginning is not None):
        return last.beginnings
    return max(1, last.beginnings) + max(1, span.beginnings)
