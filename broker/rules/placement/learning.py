"""What lanes really do: seconds of a job, learned from what ended; the catalog's belief is only a start.

Two figures are told apart. How long a job takes of an instance that is kept busy says where work should go: it is
the job's time over the instance's concurrency. How much of the instance jobs took lately, at the load that there was,
says what they cost. A lane that is hardly used looks slow by the second, and would never get work again by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, sqrt

import msgspec

from broker.domain.lane import Lane

__all__ = ["Sample", "Speed", "SpeedBook"]

_MEMORY_JOBS = 32.0
_MEMORY_S = 1.0
_BELIEF_JOBS = 8.0
"""What the catalog says counts as much as so many jobs."""

_USUAL_JOBS = 2_000.0
_FORGETTING_S = 300.0
_SLOWER = 2.0


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs of one model that succeeded on a lane: sums of seconds, squared seconds, instance seconds and tokens.

    Tokens are of those `counted` of which they are known; None where that is all of them.
    """

    lane: str
    model: str
    jobs: int
    run_s: float
    run_s_squared: float
    accelerator_s: float
    counted: int | None = None
    input_tokens: int = 0
    output_tokens: int = 0


class Speed(msgspec.Struct, kw_only=True):
    """What is known of one model on one lane.

    `job_s`: seconds of a busy instance for one job, `spread_s` their standard deviation; `used_s`: seconds of an
    instance that a job took lately, at the load there was. `usual_s` is `job_s` over a longer time. `jobs` that
    were seen are 0 as long as it is the catalog's word.
    """

    job_s: float
    used_s: float
    usual_s: float
    believed_s: float
    spread_s: float = 0.0
    jobs: float = 0.0
    seen_s: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0

    @property
    def is_slower(self) -> bool:
        """Whether it is much slower than it used to be."""
        return self.jobs > 0 and self.job_s > _SLOWER * self.usual_s


class SpeedBook:
    """The speeds of all lanes. Told the time; its memory is the last 32 jobs or the last second, whichever is more."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = {str(lane.name): lane for lane in lanes}
        self._speeds: dict[tuple[str, str], Speed] = {}

    def observe(self, now_s: float, sample: Sample) -> None:
        """Learn from jobs that ended."""
        lane = self._lanes.get(sample.lane)
        if lane is None or sample.jobs <= 0:
            return
        key = (sample.lane, sample.model)
        speed = self._speeds.get(key) or self._believed(lane)
        mean_s = sample.run_s / sample.jobs / lane.engine.concurrency
        variance = max(0.0, sample.run_s_squared / sample.jobs / lane.engine.concurrency**2 - mean_s**2)
        part = _part(speed, now_s, sample.jobs)
        variance += (1.0 - part) * (mean_s - speed.job_s) ** 2
        usual = 1.0 - (1.0 - 1.0 / _USUAL_JOBS) ** sample.jobs if speed.jobs > _USUAL_JOBS else None
        seen = speed.jobs + sample.jobs
        counted = sample.jobs if sample.counted is None else sample.counted
        # Nothing is learned of tokens that nobody stated: they aren't none, or the lane would look like a present.
        tokens_part = (part if speed.input_tokens or speed.output_tokens else 1.0) if counted else 0.0
        self._speeds[key] = Speed(
            job_s=_moved(speed.job_s, mean_s, part),
            used_s=_moved(speed.used_s, sample.accelerator_s / sample.jobs, part),
            usual_s=_moved(speed.usual_s, mean_s, usual or (sample.jobs / seen)),
            believed_s=speed.believed_s,
            spread_s=sqrt(max(0.0, _moved(speed.spread_s**2, variance, part))),
            jobs=seen,
            seen_s=now_s,
            input_tokens=_moved(speed.input_tokens, sample.input_tokens / max(1, counted), tokens_part),
            output_tokens=_moved(speed.output_tokens, sample.output_tokens / max(1, counted), tokens_part),
        )

    def speed(self, lane: str, model: str, now_s: float) -> Speed:
        """What to expect. What made a lane look slow is forgotten with time, lest it never be tried again."""
        found = self._speeds.get((lane, model))
        if found is None:
            return self._believed(self._lanes[lane])
        best_s = min(found.usual_s, found.believed_s)
        if found.job_s <= best_s:
            return found
        kept = 0.5 ** (max(0.0, now_s - found.seen_s) / _FORGETTING_S)
        return msgspec.structs.replace(found, job_s=found.job_s**kept * best_s ** (1.0 - kept))

    def _believed(self, lane: Lane) -> Speed:
        job_s = 1.0 / (lane.jobs_per_second * lane.slots)
        return Speed(job_s=job_s, used_s=job_s, usual_s=job_s, believed_s=job_s)


def _part(speed: Speed, now_s: float, jobs: int) -> float:
    """How much the new jobs count beside what is remembered, 0 to 1."""
    memory = min(_BELIEF_JOBS + speed.jobs, _MEMORY_JOBS)
    by_count = jobs / (memory + jobs)
    if speed.jobs < _MEMORY_JOBS:
        return by_count
    return min(by_count, 1.0 - exp(-max(now_s - speed.seen_s, 0.05) / _MEMORY_S))


def _moved(before: float, new: float, part: float) -> float:
    return before + part * (new - before)
