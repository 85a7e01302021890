"""What a run came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from broker.simulation.backlog import Backlog
from broker.simulation.fleet import Fleet

__all__ = ["ClassResult", "Result", "result_of"]

_SECONDS_PER_HOUR = 3_600.0


class ClassResult(msgspec.Struct, frozen=True, kw_only=True):
    """One source's jobs: how many, how many began late or never, and how long they waited."""

    tenant: str
    kind: str
    jobs: float
    missed: float
    wait_p50_s: float
    wait_p95_s: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A run's cost in USD, what of it was waste, the work done by provider, and what became of the jobs."""

    cost_usd: float
    idle_usd: float
    loading_usd: float
    stopping_usd: float
    lost_usd: float
    starts: int
    preemptions: int
    shares: dict[str, float]
    classes: tuple[ClassResult, ...]

    @property
    def missed(self) -> float:
        return sum(one.missed for one in self.classes)

    @property
    def jobs(self) -> float:
        return sum(one.jobs for one in self.classes)

    @property
    def wasted_usd(self) -> float:
        return self.idle_usd + self.loading_usd + self.stopping_usd + self.lost_usd


def result_of(
    fleet: Fleet, backlog: Backlog, done: Mapping[str, float], idle_s: Sequence[float], lost_s: Sequence[float]
) -> Result:
    """The books of a run that has ended."""
    usd_per_s = [lane.facts.hour_nano_usd / 1e9 / _SECONDS_PER_HOUR for lane in fleet.lanes]
    total = sum(done.values())
    return Result(
        cost_usd=sum(lane.billed_s * price for lane, price in zip(fleet.lanes, usd_per_s, strict=True)),
        idle_usd=sum(seconds * price for seconds, price in zip(idle_s, usd_per_s, strict=True)),
        loading_usd=sum(lane.loading_s * price for lane, price in zip(fleet.lanes, usd_per_s, strict=True)),
        stopping_usd=sum(lane.stopping_s * price for lane, price in zip(fleet.lanes, usd_per_s, strict=True)),
        lost_usd=sum(seconds * price for seconds, price in zip(lost_s, usd_per_s, strict=True)),
        starts=sum(lane.starts for lane in fleet.lanes),
        preemptions=sum(lane.taken for lane in fleet.lanes),
        shares={name: units / total if total else 0.0 for name, units in done.items()},
        classes=tuple(
            ClassResult(
                tenant=source.tenant,
                kind=source.terms.kind,
                jobs=backlog.arrived[index],
                missed=backlog.missed[index],
                wait_p50_s=_quantile(backlog.waits[index], 0.5),
                wait_p95_s=_quantile(backlog.waits[index], 0.95),
            )
            for index, source in enumerate(backlog.sources)
        ),
    )


def _quantile(waits: Mapping[float, float], part: float) -> float:
    """The wait that this part of the jobs does not exceed."""
    left = part * sum(waits.values())
    for wait_s in sorted(waits):
        left -= waits[wait_s]
        if left <= 0:
            return wait_s
    return 0.0
