"""Virtual instances: whole ones, that take time to start, cost by the second, and get taken away."""

from __future__ import annotations

from random import Random

import msgspec

from broker.domain.lane import Market
from broker.rules.placement.health import SLOW, Health, faulted, is_resting, succeeded, trust
from broker.rules.placement.lanes import LaneFacts, LaneNow, Supply
from broker.simulation.faults import Outage, is_away

__all__ = ["STOP_S", "Fleet", "VirtualLane"]

STOP_S = 20.0
_SECONDS_PER_HOUR = 3_600.0
_START_SPREAD = (0.85, 1.25)
_NEVER = float("inf")


class Instance(msgspec.Struct):
    """One machine: when it is ready, from when on it costs, and when it is taken away."""

    ready_s: float
    billed_from_s: float
    taken_s: float


class VirtualLane:
    """A lane's instances on the virtual clock. What it spends is in instance-seconds."""

    def __init__(self, facts: LaneFacts, seed: str) -> None:
        self.facts = facts
        self.ready: list[Instance] = []
        self.starting: list[Instance] = []
        self.health = Health()
        self.away = False
        self.billed_s = 0.0
        self.loading_s = 0.0
        self.stopping_s = 0.0
        self.starts = 0
        self.taken = 0
        self._random = Random(seed)  # noqa: S311 (chance in a simulation)

    def start(self, now_s: float, count: int, *, at_once: bool = False) -> None:
        """Order instances; each takes the lane's start-up time, more or less."""
        for _ in range(count):
            total_s = 0.0 if at_once else self.facts.start_s * self._random.uniform(*_START_SPREAD)
            ready_s = now_s + total_s
            billed_from_s = max(now_s, ready_s - self.facts.start_billed_s)
            lives_s = _NEVER
            if self.facts.market is Market.SPOT and self.facts.preemptions_per_hour > 0:
                lives_s = self._random.expovariate(self.facts.preemptions_per_hour / _SECONDS_PER_HOUR)
            self.starting.append(Instance(ready_s, billed_from_s, billed_from_s + lives_s))
        self.starts += count

    def stop(self, now_s: float, count: int) -> None:
        """End instances: first those that aren't ready, the latest first; a ready one ends its work, which costs."""
        self.starting.sort(key=lambda one: one.ready_s)
        for _ in range(count):
            if self.starting:
                self._end(self.starting.pop(), now_s)
            elif self.ready:
                self._end(self.ready.pop(), now_s + STOP_S)
                self.stopping_s += STOP_S

    def advance(self, now_s: float) -> float:
        """Bring the lane up to now; the part of its ready instances that was taken away."""
        if self.away:
            gone, self.starting = self.starting, []
            for one in gone:
                self._end(one, now_s)
            return self._take(now_s, list(self.ready))
        if self.starting:
            self._end_each([one for one in self.starting if one.taken_s <= now_s], self.starting)
            for one in [one for one in self.starting if one.ready_s <= now_s]:
                self.starting.remove(one)
                self.ready.append(one)
                self.loading_s += one.ready_s - one.billed_from_s
        return self._take(now_s, [one for one in self.ready if one.taken_s <= now_s]) if self.ready else 0.0

    def close(self, now_s: float) -> None:
        """End everything, as at the end of the run."""
        self.stop(now_s, len(self.ready) + len(self.starting))

    def _take(self, now_s: float, gone: list[Instance]) -> float:
        part = len(gone) / len(self.ready) if gone else 0.0
        for one in gone:
            self.ready.remove(one)
            self._end(one, min(now_s, one.taken_s))
        self.taken += len(gone)
        return part

    def _end_each(self, gone: list[Instance], among: list[Instance]) -> None:
        for one in gone:
            among.remove(one)
            self._end(one, one.taken_s)
            self.taken += 1

    def _end(self, one: Instance, at_s: float) -> None:
        self.billed_s += max(0.0, at_s - one.billed_from_s)


class Fleet:
    """All lanes of a simulation."""

    def __init__(self, lanes: tuple[LaneFacts, ...], outages: tuple[Outage, ...], seed: int) -> None:
        self.lanes = [VirtualLane(facts, f"{seed}/{facts.name}") for facts in lanes]
        self._outages = outages
        self._outages_of = [[one for one in outages if one.hits(facts)] for facts in lanes]
        for lane in self.lanes:
            if lane.facts.supply is not Supply.ELASTIC:
                lane.start(-_SECONDS_PER_HOUR, lane.facts.quota, at_once=True)

    def advance(self, now_s: float) -> list[tuple[int, float]]:
        """Bring all lanes up to now; those that lost instances, with the part that they lost."""
        lost = []
        for index, (lane, outages) in enumerate(zip(self.lanes, self._outages_of, strict=True)):
            lane.away = bool(outages) and any(one.from_s <= now_s < one.to_s for one in outages)
            part = lane.advance(now_s)
            if part:
                lost.append((index, part))
        return lost

    def states(self, now_s: float) -> tuple[LaneNow, ...]:
        """What the planner can know now. A lane that is away fails; once back it is trusted by degrees."""
        found = []
        for lane in self.lanes:
            away = is_away(lane.facts, self._outages, now_s)
            if away:
                lane.health = faulted(lane.health, now_s, SLOW)
            elif not is_resting(lane.health, now_s):  # nobody tries it before
                lane.health = succeeded(lane.health, now_s, SLOW)
            level = 0.0 if away else trust(lane.health, now_s, SLOW)
            found.append(LaneNow(len(lane.ready), len(lane.starting), level))
        return tuple(found)

    def cost_usd(self) -> float:
        return sum(lane.billed_s * lane.facts.hour_nano_usd for lane in self.lanes) / _SECONDS_PER_HOUR / 1e9
