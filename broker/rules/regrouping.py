"""Single jobs that go back to waiting, merged into as few spans as say the same."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from broker.domain.ids import id_at
from broker.domain.job import WaitingSpan

__all__ = ["regroup"]


def regroup(spans: Iterable[WaitingSpan]) -> list[WaitingSpan]:
    """The same jobs in the fewest spans: neighbours by id that agree in all but their body size become one."""
    merged: list[WaitingSpan] = []
    for span in sorted(spans, key=lambda span: span.first_job_id):
        if merged and _continues(merged[-1], span):
            last = merged[-1]
            merged[-1] = msgspec.structs.replace(
                last,
                jobs_count=last.jobs_count + span.jobs_count,
                body_bytes_max=max(last.body_bytes_max, span.body_bytes_max),
            )
        else:
            merged.append(span)
    return merged


def _continues(last: WaitingSpan, span: WaitingSpan) -> bool:
    if last.first_job_id[:12] != span.first_job_id[:12]:
        return False
    moved = msgspec.structs.replace(
        span, first_job_id=last.first_job_id, jobs_count=last.jobs_count, body_bytes_max=last.body_bytes_max
    )
    return id_at(last.first_job_id, last.jobs_count) == span.first_job_id and moved == last
