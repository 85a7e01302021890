"""One's own arrivals as a workload: what the running broker counted, minute by minute."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from broker.domain.errors import UsageError
from broker.domain.lane import Lane, PriceMeter, Supply
from broker.rules.placement.facts import demands_of, facts_of
from broker.rules.placement.lanes import LaneFacts
from broker.rules.placement.learning import Speed
from broker.rules.placement.work import Terms
from broker.simulation.workload import STEP_S, Source, Workload, start_within_s

__all__ = ["Arrived", "lanes_of", "workload_of"]

_MINUTE_S = 60
_DAY_S = 86_400
_STEPS_PER_MINUTE = _MINUTE_S // STEP_S


class Arrived(msgspec.Struct, frozen=True):
    """So many jobs came in a minute, counted since 1970, to be done within `window_s`."""

    minute: int
    model: str
    constraints: str
    window_s: int
    jobs: int


def workload_of(arrived: Iterable[Arrived]) -> Workload:
    """The arrivals, each minute's spread evenly over it. Of two days or more the first is history, known beforehand.

    Raises UsageError where nothing came.
    """
    every = sorted(arrived, key=lambda one: one.minute)
    if not every:
        raise UsageError("no arrivals are kept yet: the planner counts them while it runs")
    first, minutes = every[0].minute, every[-1].minute - every[0].minute + 1
    start_s = -_DAY_S if minutes * _MINUTE_S >= 2 * _DAY_S else 0
    jobs: dict[tuple[str, str, int], array[float]] = {}
    for one in every:
        key = (one.model, one.constraints, one.window_s)
        steps = jobs.setdefault(key, array("d", bytes(8 * minutes * _STEPS_PER_MINUTE)))
        for step in range(_STEPS_PER_MINUTE):
            steps[(one.minute - first) * _STEPS_PER_MINUTE + step] += one.jobs / _STEPS_PER_MINUTE
    sources = tuple(
        Source(
            terms=Terms(model, _kind(model, window_s), demands_of(constraints)),
            start_within_s=start_within_s(window_s),
            jobs=steps,
        )
        for (model, constraints, window_s), steps in sorted(jobs.items())
    )
    return Workload(start_s=start_s, arrivals_end_s=start_s + minutes * _MINUTE_S, sources=sources)


def lanes_of(
    lanes: Sequence[Lane], speeds: Mapping[str, Mapping[str, Speed]], workload: Workload
) -> tuple[LaneFacts, ...]:
    """The catalog's lanes, by the hour, as if their instances could be started and stopped, at the learned speeds."""
    found = []
    for lane in lanes:
        if lane.price.meter is not PriceMeter.ACCELERATOR_HOUR:
            continue
        facts = facts_of(lane, speeds.get(str(lane.name)))
        by_kind = {
            source.terms.kind: facts.jobs_per_second[source.terms.model]
            for source in workload.sources
            if source.terms.model in facts.jobs_per_second
        }
        found.append(msgspec.structs.replace(facts, supply=Supply.ELASTIC, jobs_per_second=by_kind))
    if not found:
        raise UsageError("no lane of the catalog is priced by the hour")
    return tuple(found)


def _kind(model: str, window_s: int) -> str:
    """Results are told by kind, so that each window is one of its own."""
    for length, unit in ((_DAY_S, "d"), (3_600, "h"), (_MINUTE_S, "min")):
        if window_s % length == 0:
            return f"{model} {window_s // length}{unit}"
    return f"{model} {window_s}s"
