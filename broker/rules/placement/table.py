"""Lanes side by side: who may serve which terms, how fast, and at what cost per unit of work.

Work is measured in seconds of the fastest lane for its kind, so that kinds of very different size add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from broker.domain.lane import Market
from broker.rules.decisions import Removed
from broker.rules.placement.filters import Eligibility, bits, eligible, job_cost_nano_usd
from broker.rules.placement.lanes import LaneFacts, Supply
from broker.rules.placement.work import Group, Terms

__all__ = ["LaneTable"]

_SECONDS_PER_HOUR = 3_600.0
_LOST_WORK_S = 20.0


class LaneTable:
    """What follows from the lanes' facts alone, worked out once per version of the catalog.

    What it remembers is a function of the lanes, so that using one table for many plans changes no decision.
    """

    def __init__(self, lanes: Sequence[LaneFacts]) -> None:
        self.lanes = tuple(lanes)
        self.providers = tuple(sorted({lane.provider for lane in lanes}))
        self.fastest: dict[str, float] = {}
        for lane in lanes:
            for kind, speed in lane.jobs_per_second.items():
                self.fastest[kind] = max(speed, self.fastest.get(kind, 0.0))
        self.price_versions = tuple(lane.price_version for lane in lanes)
        self._eligible: dict[Terms, Eligibility] = {}
        self._removed: dict[tuple[str, int], tuple[Removed, ...]] = {}
        self._without_spot: dict[Terms, Terms] = {}
        self._job_costs: dict[tuple[int, str], int] = {}
        self._speeds: dict[str, tuple[float, ...]] = {}

    def eligible(self, terms: Terms) -> Eligibility:
        found = self._eligible.get(terms)
        if found is None:
            found = self._eligible[terms] = eligible(terms, self.lanes, self._removed)
        return found

    def job_cost_nano_usd(self, index: int, kind: str) -> int:
        """What one job of this kind costs on a busy instance of the lane."""
        key = (index, kind)
        found = self._job_costs.get(key)
        if found is None:
            found = self._job_costs[key] = job_cost_nano_usd(self.lanes[index], kind)
        return found

    def cheapest_first(self, terms: Terms) -> tuple[int, ...]:
        """The lanes that may serve these terms, by the cost of a job."""
        indices = bits(self.eligible(terms).mask)
        return tuple(sorted(indices, key=lambda index: (self.job_cost_nano_usd(index, terms.kind), index)))

    def uninterrupted_first(self, order: Sequence[int]) -> tuple[int, ...]:
        """The same lanes, those that may be taken away last."""
        return tuple(sorted(order, key=lambda index: self.lanes[index].market is Market.SPOT))

    def terms_of(self, group: Group, preemptions_max: int) -> Terms:
        """The group's terms; off interruptible lanes once it was preempted too often, where another may serve it."""
        if group.preemptions < preemptions_max:
            return group.terms
        steady = self._without_spot.get(group.terms)
        if steady is None:
            demands = msgspec.structs.replace(group.terms.demands, interruptible=False)
            steady = msgspec.structs.replace(group.terms, demands=demands)
            if not self.eligible(steady).mask:
                steady = group.terms
            self._without_spot[group.terms] = steady
        return steady

    def work(self, kind: str, jobs: float) -> float:
        """Units of work in so many jobs; none where no lane runs the kind."""
        return jobs / self.fastest[kind] if kind in self.fastest else 0.0

    def speeds(self, kind: str) -> tuple[float, ...]:
        """Units of work per second of one instance, by lane."""
        found = self._speeds.get(kind)
        if found is None:
            fastest = self.fastest.get(kind, 1.0)
            found = tuple(lane.jobs_per_second.get(kind, 0.0) / fastest for lane in self.lanes)
            self._speeds[kind] = found
        return found

    def largest_interruptible(self, kind: str, mask: int) -> float:
        """The most units per second that goes with one instance taken away, among these lanes."""
        speeds = self.speeds(kind)
        lost = [speeds[index] for index in bits(mask) if self.lanes[index].market is Market.SPOT]
        return max(lost, default=0.0)

    def mean_speeds(self, mix: Mapping[str, float]) -> list[float]:
        """Units of work per second of one instance on work of this mix (units by kind), by lane.

        Instance time adds up, so the mean is the harmonic one; a lane that can't run a part of the mix is rated by
        the part that it can.
        """
        speeds = []
        parts = [(units, self.speeds(kind)) for kind, units in mix.items()]
        for index in range(len(self.lanes)):
            done = time = 0.0
            for units, by_index in parts:
                speed = by_index[index]
                if speed > 0:
                    done += units
                    time += units / speed
            speeds.append(done / time if time > 0 else 0.0)
        return speeds

    def hour_cost(self, index: int, kind_costs: Mapping[str, float] | None = None) -> float:
        """What an hour of one busy instance really costs in nano-USD, with what its preemptions waste.

        Fixed instances cost nothing more by being used. On per-token lanes it is what an hour's jobs cost.
        """
        lane = self.lanes[index]
        match lane.supply:
            case Supply.FIXED:
                return 0.0
            case Supply.PER_TOKEN:
                kinds = [kind for kind in (kind_costs or lane.job_nano_usd) if kind in lane.jobs_per_second]
                hourly = [lane.job_nano_usd[kind] * lane.jobs_per_second[kind] for kind in kinds]
                return _SECONDS_PER_HOUR * sum(hourly) / len(hourly) if hourly else 0.0
            case Supply.ELASTIC:
                risk = lane.preemptions_per_hour if lane.market is Market.SPOT else 0.0
                return lane.hour_nano_usd * (1.0 + risk * (lane.start_billed_s + _LOST_WORK_S) / _SECONDS_PER_HOUR)
