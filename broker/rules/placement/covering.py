"""How many instances each lane should hold so that the needed speed is there, at the lowest cost.

Lanes are filled in merit order: cost per unit of work, cheapest first. Soft work takes whole instances only, and what
doesn't fill one waits; it may use lanes only as far as the last day's demand reaches into the merit order, since
dearer ones can be avoided by waiting. Hard work may start anything, and the cheapest way to cover it is picked, with
the surplus credited as soft work done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil

import msgspec

from broker.rules.placement.filters import bits
from broker.rules.placement.lanes import LaneNow, Supply
from broker.rules.placement.needs import Pool
from broker.rules.placement.policy import Policy
from broker.rules.placement.shares import ShareRoom, share_room
from broker.rules.placement.table import LaneTable

__all__ = ["Cover", "cover"]

_NOTHING = 1e-9
_SURPLUS_USE_S = 1_800.0
_START_SPREAD_S = 7_200.0


class Cover:
    """The fleet that is wanted, while it is being put together; figures are instances by lane.

    `limits`: the most that may be wanted; `quotas`: were every lane well; `room`: idle ones, with fractions.
    """

    def __init__(self, table: LaneTable, states: Sequence[LaneNow]) -> None:
        both = list(zip(table.lanes, states, strict=True))
        fixed = [now.ready if lane.supply is Supply.FIXED else 0 for lane, now in both]
        self.quotas = [lane.quota for lane in table.lanes]
        # Nobody starts what is fixed: what isn't there must not be counted on.
        self.limits = [now.ready if lane.supply is Supply.FIXED else ceil(lane.quota * now.trust) for lane, now in both]
        self.live = [now.live for now in states]
        self.desired = fixed
        self.room = [float(ready) for ready in fixed]

    def addable(self, index: int) -> int:
        """How many more the lane may hold."""
        return self.limits[index] - self.desired[index]

    def new(self, index: int, count: int) -> int:
        """How many of so many more would have to be started."""
        return max(0, self.desired[index] + count - max(self.live[index], self.desired[index]))

    def use_room(self, index: int, speed: float, need: float) -> float:
        """Use what is already wanted and idle; the units per second gained."""
        if self.room[index] <= 0 or need <= 0:
            return 0.0
        gained = min(self.room[index] * speed, need)
        self.room[index] -= gained / speed
        return gained


class _Line(msgspec.Struct):
    """One pool's view: its lanes in merit order; by index, speed on its mix, cost per unit of work, billed start."""

    order: list[int]
    speeds: list[float]
    prices: list[float]
    loads_s: list[float]


def cover(
    table: LaneTable,
    states: Sequence[LaneNow],
    pools: Sequence[Pool],
    policy: Policy,
    done: Mapping[str, float],
) -> Cover:
    """The instances wanted, pool after pool, those with the fewest lanes first."""
    fleet = Cover(table, states)
    shares = _shares(table, states, pools, fleet, policy, done)
    waiting: list[tuple[int, float]] = []
    for pool in pools:
        # What didn't fill an instance of a narrower pool may fill one together with a wider pool's work.
        carried = sum(units for mask, units in waiting if mask & pool.mask == mask)
        waiting = [(mask, units) for mask, units in waiting if mask & pool.mask != mask]
        rivals = sum(other.day for other in pools if other.mask & pool.mask)
        missing = _PoolCover(fleet, _line(table, pool, shares), pool, policy, shares, rivals).add(carried)
        if missing > _NOTHING:
            waiting.append((pool.mask, missing))
    return fleet


def _shares(
    table: LaneTable,
    states: Sequence[LaneNow],
    pools: Sequence[Pool],
    fleet: Cover,
    policy: Policy,
    done: Mapping[str, float],
) -> ShareRoom:
    """What limits on providers' shares ask for, all pools together."""
    if not policy.limits_shares:
        return ShareRoom()
    mix: dict[str, float] = {}
    for pool in pools:
        for kind, units in pool.mix.items():
            mix[kind] = mix.get(kind, 0.0) + units
    mask = 0
    for pool in pools:
        mask |= pool.mask
    line = _line(table, Pool(mask, 0.0, mix=mix), ShareRoom())
    demand = max(sum(pool.day for pool in pools), sum(pool.backlog for pool in pools) / 43_200.0)
    return share_room(table, fleet.limits, states, line.speeds, line.order, demand, done, policy)


def _line(table: LaneTable, pool: Pool, shares: ShareRoom) -> _Line:
    speeds = table.mean_speeds(pool.mix)
    prices = [0.0] * len(speeds)
    order = [index for index in bits(pool.mask) if speeds[index] > 0]
    for index in order:
        prices[index] = table.hour_cost(index, pool.mix) / speeds[index]
    order.sort(key=lambda index: (prices[index], table.lanes[index].name))
    return _Line(shares.ordered(order), speeds, prices, [lane.start_billed_s for lane in table.lanes])


class _PoolCover:
    """Adds to the fleet what one pool needs. `rivals`: the daily mean of all work that its lanes may do."""

    def __init__(self, fleet: Cover, line: _Line, pool: Pool, policy: Policy, shares: ShareRoom, rivals: float) -> None:
        self._fleet, self._line, self._pool, self._policy = fleet, line, pool, policy
        self._allowed, self._dearest = self._soft_limits(shares, rivals)

    def add(self, carried: float) -> float:
        """Soft work first, with what is `carried` from narrower pools; what of it waits, in units per second."""
        need = self._steady() + carried
        missing = self._add_soft(need)
        return self._add_hard(self._pool.hard - (need - missing), missing)

    def _soft_limits(self, shares: ShareRoom, rivals: float) -> tuple[list[int], float]:
        """Up to how many instances soft work may start by lane, and the price of the dearest unit it may use."""
        fleet, line = self._fleet, self._line
        left = max(rivals, _NOTHING) * self._policy.cap_headroom
        allowed = [0] * len(fleet.limits)
        dearest = 0.0
        for index in line.order:
            if left <= _NOTHING:
                break
            allowed[index] = shares.allowed(index, fleet.limits[index])
            # A lane that is away counts, as waiting for its return is cheaper than the next one.
            if counted := shares.allowed(index, fleet.quotas[index]):
                left -= counted * line.speeds[index]
                dearest = max(dearest, line.prices[index])
        return allowed, dearest

    def _steady(self) -> float:
        """The soft speed; more where lanes clearly cheaper than the one that the day's demand ends at would be idle."""
        line, pool, policy = self._line, self._pool, self._policy
        filled = marginal = 0.0
        day = policy.steady_part * pool.day
        for index in line.order:
            if filled >= day:
                break
            filled += self._allowed[index] * line.speeds[index]
            marginal = max(marginal, line.prices[index])
        cheap = sum(
            self._allowed[index] * line.speeds[index]
            for index in line.order
            if line.prices[index] <= policy.steady_below * marginal
        )
        return max(pool.soft, min(cheap, day, pool.urgent + pool.backlog / policy.standby_s))

    def _add_soft(self, need: float) -> float:
        """Whole instances in merit order; what is left over waits and is returned."""
        fleet, speeds = self._fleet, self._line.speeds
        for index in self._line.order:
            need -= fleet.use_room(index, speeds[index], need)
        for index in self._line.order:
            addable = min(self._allowed[index] - fleet.desired[index], fleet.addable(index))
            if need <= _NOTHING:
                return 0.0
            if addable <= 0:
                continue
            wanted = need / speeds[index]
            whole = min(int(wanted), addable)
            fleet.desired[index] += whole
            need -= whole * speeds[index]
            if whole < addable:
                rest = wanted - whole
                kept = fleet.live[index] > fleet.desired[index]
                if rest <= (self._policy.keep_above if kept else self._policy.add_above):
                    return need
                fleet.desired[index] += 1
                fleet.room[index] += 1.0 - rest
                return 0.0
        return need

    def _add_hard(self, short: float, missing: float) -> float:
        """Add the cheapest instances until the hard speed is there; what soft work still misses then."""
        fleet, speeds = self._fleet, self._line.speeds
        while short > _NOTHING:
            best: tuple[float, int, int] | None = None
            for index in self._line.order:
                addable = fleet.addable(index)
                if addable <= 0:
                    continue
                for count in {int(short / speeds[index]), min(addable, ceil(short / speeds[index]))}:
                    if 0 < count <= addable:
                        score = self._score(index, count, short)
                        if best is None or (score, index) < best[:2]:
                            best = (score, index, count)
            if best is None:
                return missing
            _, index, count = best
            gained = count * speeds[index]
            fleet.desired[index] += count
            used = min(gained, max(short, missing))
            fleet.room[index] += (gained - used) / speeds[index]
            missing = max(0.0, missing - used)
            short -= gained
        return missing

    def _score(self, index: int, count: int, short: float) -> float:
        """Cost per unit covered of `count` more instances here, starts included, useful surplus credited."""
        line = self._line
        hourly = line.prices[index] * line.speeds[index]
        gained = count * line.speeds[index]
        cost = hourly * (count + self._fleet.new(index, count) * line.loads_s[index] / _START_SPREAD_S)
        surplus = max(0.0, gained - short)
        useful = min(surplus, self._pool.backlog / _SURPLUS_USE_S)
        return (cost - useful * min(self._dearest, line.prices[index])) / min(gained, short)
