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


class Cover(msgspec.Struct):
    """The fleet that is wanted, while it is being put together. `room`: idle instances (with fractions) by lane."""

    quotas: list[int]
    limits: list[int]
    desired: list[int]
    room: list[float]


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
    both = list(zip(table.lanes, states, strict=True))
    fixed = [now.ready if lane.supply is Supply.FIXED else 0 for lane, now in both]
    # Nobody starts what is fixed: what isn't there must not be counted on.
    limits = [now.ready if lane.supply is Supply.FIXED else ceil(lane.quota * now.trust) for lane, now in both]
    fleet = Cover([lane.quota for lane in table.lanes], limits, list(fixed), [float(ready) for ready in fixed])
    shares = _shares(table, states, pools, fleet, policy, done)
    waiting: list[tuple[int, float]] = []
    for pool in pools:
        line = _line(table, pool, shares)
        # What didn't fill an instance of a narrower pool may fill one together with a wider pool's work.
        carried = sum(units for mask, units in waiting if mask & pool.mask == mask)
        waiting = [(mask, units) for mask, units in waiting if mask & pool.mask != mask]
        soft_limits, dearest = _soft_limits(fleet, line, pool, pools, shares, policy)
        need = _steady(line, pool, soft_limits, policy) + carried
        missing = _cover_soft(fleet, line, need, states, soft_limits, policy)
        missing = _cover_hard(fleet, line, pool, pool.hard - (need - missing), states, dearest, missing)
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
    """What limits on suppliers' shares ask for, all pools together."""
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


def _soft_limits(
    fleet: Cover,
    line: _Line,
    pool: Pool,
    pools: Sequence[Pool],
    shares: ShareRoom,
    policy: Policy,
) -> tuple[list[int], float]:
    """Up to how many instances soft work may start by lane, and the price of the dearest unit it may use."""
    rivals = sum(other.day for other in pools if other.mask & pool.mask)
    left = max(rivals, _NOTHING) * policy.cap_headroom
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


def _steady(line: _Line, pool: Pool, allowed: Sequence[int], policy: Policy) -> float:
    """The soft speed; more where lanes clearly cheaper than the one that the day's demand ends at would stand idle."""
    filled = marginal = 0.0
    day = policy.steady_part * pool.day
    for index in line.order:
        if filled >= day:
            break
        filled += allowed[index] * line.speeds[index]
        marginal = max(marginal, line.prices[index])
    cheap = sum(
        allowed[index] * line.speeds[index]
        for index in line.order
        if line.prices[index] <= policy.steady_below * marginal
    )
    return max(pool.soft, min(cheap, day, pool.urgent + pool.backlog / policy.standby_s))


def _cover_soft(
    fleet: Cover, line: _Line, need: float, states: Sequence[LaneNow], allowed: Sequence[int], policy: Policy
) -> float:
    """Whole instances in merit order; what is left over waits and is returned."""
    for index in line.order:
        need -= _use_room(fleet, index, line.speeds[index], need)
    for index in line.order:
        addable = min(allowed[index], fleet.limits[index]) - fleet.desired[index]
        if need <= _NOTHING:
            return 0.0
        if addable <= 0:
            continue
        wanted = need / line.speeds[index]
        whole = min(int(wanted), addable)
        fleet.desired[index] += whole
        need -= whole * line.speeds[index]
        if whole < addable:
            rest = wanted - whole
            kept = states[index].live > fleet.desired[index]
            if rest <= (policy.keep_above if kept else policy.add_above):
                return need
            fleet.desired[index] += 1
            fleet.room[index] += 1.0 - rest
            return 0.0
    return need


def _use_room(fleet: Cover, index: int, speed: float, need: float) -> float:
    """Use what is already wanted and idle; the units per second gained."""
    if fleet.room[index] <= 0 or need <= 0:
        return 0.0
    gained = min(fleet.room[index] * speed, need)
    fleet.room[index] -= gained / speed
    return gained


def _cover_hard(
    fleet: Cover,
    line: _Line,
    pool: Pool,
    short: float,
    states: Sequence[LaneNow],
    dearest: float,
    missing: float,
) -> float:
    """Add the cheapest instances until the hard speed is there; what soft work still misses then."""
    while short > _NOTHING:
        best: tuple[float, int, int] | None = None
        for index in line.order:
            addable = fleet.limits[index] - fleet.desired[index]
            if addable <= 0:
                continue
            for count in {int(short / line.speeds[index]), min(addable, ceil(short / line.speeds[index]))}:
                if 0 < count <= addable:
                    score = _score(fleet, line, pool, index, count, short, states, dearest)
                    if best is None or (score, index) < best[:2]:
                        best = (score, index, count)
        if best is None:
            return missing
        _, index, count = best
        gained = count * line.speeds[index]
        fleet.desired[index] += count
        used = min(gained, max(short, missing))
        fleet.room[index] += (gained - used) / line.speeds[index]
        missing = max(0.0, missing - used)
        short -= gained
    return missing


def _score(
    fleet: Cover,
    line: _Line,
    pool: Pool,
    index: int,
    count: int,
    short: float,
    states: Sequence[LaneNow],
    dearest: float,
) -> float:
    """Cost per unit covered of `count` more instances here, starts included, useful surplus credited."""
    hourly = line.prices[index] * line.speeds[index]
    gained = count * line.speeds[index]
    new = max(0, fleet.desired[index] + count - max(states[index].live, fleet.desired[index]))
    cost = hourly * (count + new * line.loads_s[index] / _START_SPREAD_S)
    surplus = max(0.0, gained - short)
    useful = min(surplus, pool.backlog / _SURPLUS_USE_S)
    return (cost - useful * min(dearest, line.prices[index])) / min(gained, short)
