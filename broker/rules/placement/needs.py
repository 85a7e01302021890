"""How fast the fleet must work: what streams bring that can't wait, and what must be done by when.

Pools are groups that the same lanes may serve. For each: the speed below which a deadline is missed (hard), and the
lowest steady speed that ends everything in time (soft). Both follow "optimal available" speed scaling: the
highest, over all moments, of work due by then over the time until then.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from broker.rules.placement.filters import bits
from broker.rules.placement.policy import Policy
from broker.rules.placement.table import LaneTable
from broker.rules.placement.work import Group, Stream

__all__ = ["Pool", "pools_of"]


class Pool(msgspec.Struct):
    """Work that the same lanes may serve. Speeds in units of work per second; `backlog` in units."""

    mask: int
    lead_s: float
    urgent: float = 0.0
    reserve: float = 0.0
    standby: float = 0.0
    exposed: float = 0.0
    hard: float = 0.0
    soft: float = 0.0
    day: float = 0.0
    backlog: float = 0.0
    mix: dict[str, float] = {}


def pools_of(
    table: LaneTable, now_s: float, groups: Sequence[Group], streams: Sequence[Stream], policy: Policy
) -> list[Pool]:
    """The pools that have work or expect some, those with the fewest lanes first. `groups` by `start_by_s`."""
    pools: dict[int, Pool] = {}
    for stream in streams:
        _expect(_pool(pools, table, table.eligible(stream.terms).mask, policy), table, stream, policy)
    for pool in pools.values():
        pool.hard = pool.soft = pool.urgent
    due_hard: dict[int, float] = {}
    due_soft: dict[int, float] = {}
    for group in groups:
        mask = table.eligible(table.terms_of(group, policy.preemptions_max)).mask
        pool = _pool(pools, table, mask, policy)
        kind = group.terms.kind
        units = table.work(kind, group.jobs)
        pool.backlog += units
        pool.mix[kind] = pool.mix.get(kind, 0.0) + units / policy.soft_horizon_s
        seconds = group.start_by_s - now_s
        # Who is too late for a new instance still must not wait for more than half the time that one takes.
        usable = max(seconds - pool.lead_s, pool.lead_s / 2)
        if seconds <= policy.hard_horizon_s:
            due_hard[mask] = due_hard.get(mask, 0.0) + units
            pool.hard = max(pool.hard, pool.urgent + due_hard[mask] / usable)
        due_soft[mask] = due_soft.get(mask, 0.0) + units
        pool.soft = max(pool.soft, pool.urgent + due_soft[mask] / (usable * policy.soft_pace))
    for pool in pools.values():
        # Standing by costs nothing while other work fills the time; beyond that it is for what is worth its cost.
        # An instance that is taken away costs its speed, and as much again until its last work is redone.
        reserve = max(pool.reserve, pool.urgent + 2 * pool.exposed if pool.urgent else 0.0)
        filled = min(reserve, pool.urgent + pool.backlog / policy.standby_s)
        floor = max(filled, pool.urgent + pool.standby)
        pool.hard, pool.soft = max(pool.hard, floor), max(pool.soft, floor)
    return sorted((pool for pool in pools.values() if pool.mask), key=lambda pool: (pool.mask.bit_count(), pool.mask))


def _expect(pool: Pool, table: LaneTable, stream: Stream, policy: Policy) -> None:
    kind = stream.terms.kind
    day = table.work(kind, stream.day_rate)
    pool.day += day
    pool.mix[kind] = pool.mix.get(kind, 0.0) + day
    # Work that must start before an instance could be ready needs the instance before it comes.
    if stream.start_within_s <= 2 * pool.lead_s:
        rate = max(stream.recent_rate, stream.expected_rate)
        pool.urgent += policy.urgent_margin * table.work(kind, rate)
        pool.standby += table.work(kind, stream.standby_rate)
        pool.reserve += table.work(kind, stream.sudden_rate)
        pool.exposed = max(pool.exposed, table.largest_interruptible(kind, pool.mask))


def _pool(pools: dict[int, Pool], table: LaneTable, mask: int, policy: Policy) -> Pool:
    found = pools.get(mask)
    if found is None:
        starts = [table.lanes[place].start_s for place in bits(mask)]
        lead_s = policy.start_slack * max(starts, default=0.0) + policy.control_s
        found = pools[mask] = Pool(mask, lead_s, mix={})
    return found
