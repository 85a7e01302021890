"""Whether a job can be done in time anywhere, as its lanes are now; asked when it is submitted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import ceil

import msgspec

from broker.domain.lane import Lane, Supply

__all__ = ["Prospect", "soonest", "window_text"]

_OVERHEAD_S = 0.5
"""What the way through the broker and back takes at least."""

_START_SLACK = 1.25


class Prospect(msgspec.Struct, frozen=True):
    """Of a lane: instances that are ready, and seconds of a busy one for a job, by model."""

    ready: int
    job_s: dict[str, float]


def soonest(lanes: Iterable[Lane], prospects: Mapping[str, Prospect], model: str) -> tuple[float, str] | None:
    """How many seconds the fastest of these lanes needs at least, and why; None where that isn't known of any.

    A lane of fixed size without workers may get one any moment, so nothing is known of it.
    """
    found: list[tuple[float, str]] = []
    for lane in lanes:
        known = prospects.get(str(lane.name))
        if known is None or (known.ready == 0 and lane.supply is not Supply.ELASTIC):
            return None
        job_s = known.job_s.get(model, 1.0 / (lane.jobs_per_second * lane.slots)) * lane.engine.concurrency
        start_s = 0.0 if known.ready else _START_SLACK * (lane.start_unbilled_seconds + lane.start_billed_seconds)
        why = f"{lane.name} takes {job_s:.3g} s for a job"
        if start_s:
            why += f", and {start_s:.0f} s to start an instance"
        found.append((_OVERHEAD_S + start_s + job_s, why))
    return min(found, default=None)


def window_text(seconds: float) -> str:
    """The shortest window that holds so many seconds, as a producer writes it."""
    for unit, length in (("s", 1), ("m", 60), ("h", 3_600)):
        count = ceil(seconds / length)
        if count < 2 * 60 or unit == "h":
            return f"{count}{unit}"
    raise AssertionError  # hours are the last unit
