"""Free capacity of virtual lanes in one step, as a fluid: dealt by the broker's own rule, in amounts instead of shards.

What a fluid can't have: shards that are whole, slots to wait in line for or go beside, leases. So nobody waits behind
a shard here, and `rules.placement.rooms` has nothing to decide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from broker.domain.lane import Market
from broker.rules.placement.dealing import deal, steadied
from broker.rules.placement.policy import Policy
from broker.rules.placement.table import LaneTable
from broker.rules.placement.turns import Turns
from broker.rules.placement.work import Group, Terms

__all__ = ["Dealt", "deal_step"]

_BITE = 10.0
"""What a tenant gets at a time while others wait too, in seconds of the fastest lane: about a shard."""

_NOTHING = 1e-9


class Dealt(msgspec.Struct, frozen=True):
    """So many jobs of a group go to a lane, named by its index."""

    group: Group
    index: int
    jobs: float


def deal_step(
    table: LaneTable,
    now_s: float,
    turns: Turns,
    lines: Mapping[str, Iterable[Group]],
    free_s: Sequence[float],
    orders: Mapping[Terms, tuple[int, ...]],
    policy: Policy,
) -> list[Dealt]:
    """Who gets the free instance-seconds of each lane. `lines`: what waits per tenant, by `start_by_s`."""
    hand = turns.hand(now_s, lines)
    room = _Room(table, now_s, free_s, orders, policy, lambda: hand.is_of_one)
    deal(hand, lambda: room.is_open, room.give)
    return room.dealt


class _Room:
    """What lanes have left, and what was dealt."""

    def __init__(
        self,
        table: LaneTable,
        now_s: float,
        free_s: Sequence[float],
        orders: Mapping[Terms, tuple[int, ...]],
        policy: Policy,
        is_of_one: Callable[[], bool],
    ) -> None:
        self._table, self._now_s = table, now_s
        self._free_s = list(free_s)
        self._orders, self._policy = orders, policy
        self._is_of_one = is_of_one
        self._left: dict[str, float] = {}
        self.dealt: list[Dealt] = []

    @property
    def is_open(self) -> bool:
        return max(self._free_s) > _NOTHING

    def give(self, group: Group) -> float | None:
        """A bite of the group goes to the first of its lanes with room; the work in it."""
        kind = group.terms.kind
        left = self._left.get(group.group_id, group.jobs)
        if left <= _NOTHING:
            return None
        index = next((index for index in self._order(group) if self._free_s[index] > _NOTHING), None)
        if index is None:
            return None
        speed, fastest = self._table.lanes[index].jobs_per_second[kind], self._table.fastest[kind]
        bite = float("inf") if self._is_of_one() else _BITE * fastest
        jobs = min(left, self._free_s[index] * speed, bite)
        self._free_s[index] -= jobs / speed
        self._left[group.group_id] = left - jobs
        self.dealt.append(Dealt(group, index, jobs))
        return jobs / fastest

    def _order(self, group: Group) -> Sequence[int]:
        terms = self._table.terms_of(group, self._policy.preemptions_max)
        order = self._orders.get(terms)
        if order is None:  # newer than the plan
            order = self._table.cheapest_first(terms)
        if not group.preemptions:
            return order
        lanes = self._table.lanes
        left_s = group.start_by_s - self._now_s
        return steadied(
            order, lambda index: lanes[index].market is Market.SPOT, group.preemptions, left_s, self._policy
        )
