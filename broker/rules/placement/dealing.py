"""Late binding: which waiting jobs get the free slots, at the moment when they are free.

Jobs that must start soon go before those that need not, in bands; within a band tenants take turns (deficit round
robin, measured in work); within a tenant the earliest deadline goes first. A job goes to a lane that its terms
allow, the one that is best at its kind first.

What is late already goes after all that can still be in time: were it first, a moment's shortage would make everything
late that comes after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import msgspec

from broker.rules.placement.policy import Policy
from broker.rules.placement.table import LaneTable
from broker.rules.placement.work import Group, Terms

__all__ = ["Dealt", "deal"]

_BANDS_S = (120.0, 1_200.0, 7_200.0, float("inf"))
_TURN_S = 1.0
_LAST_CHANCE_S = 60.0
"""A job with less time than this that was preempted would be late if it were preempted once more."""

_NOTHING = 1e-9


class Dealt(msgspec.Struct, frozen=True):
    """So many jobs of a group go to a lane, named by its place."""

    group: Group
    place: int
    jobs: float


class _Hand:
    """What one tenant has waiting, earliest deadline first."""

    def __init__(self, groups: Iterator[Group], weight: float) -> None:
        self._groups = groups
        self._head: Group | None = None
        self._left = 0.0
        self._budget_nano_usd: float | None = None
        self.weight = weight
        self.credit = 0.0
        self.skip()

    def first(self, due_before_s: float) -> Group | None:
        """The next group, if it must start before then."""
        return self._head if self._head is not None and self._head.start_by_s < due_before_s else None

    @property
    def left(self) -> float:
        return self._left

    def affordable(self, job_cost_nano_usd: int) -> float:
        """How many jobs of the head's budget are left at this cost; whole ones."""
        if self._budget_nano_usd is None:
            return float("inf")
        return float(max(0.0, self._budget_nano_usd) // max(1, job_cost_nano_usd))

    def take(self, jobs: float, job_cost_nano_usd: int) -> None:
        if self._budget_nano_usd is not None:
            self._budget_nano_usd -= jobs * job_cost_nano_usd
        self._left -= jobs
        if self._left <= _NOTHING:
            self.skip()

    def skip(self) -> None:
        """On to the next group: this one is used up, or no lane that it may use has room."""
        self._head = next(self._groups, None)
        self._left = self._head.jobs if self._head else 0.0
        self._budget_nano_usd = self._head.budget_left_nano_usd if self._head else None


def deal(
    table: LaneTable,
    now_s: float,
    waiting: Mapping[str, Iterator[Group]],
    free_s: Sequence[float],
    orders: Mapping[Terms, tuple[int, ...]],
    policy: Policy,
) -> list[Dealt]:
    """Who gets the free instance-seconds of each lane. `waiting`: per tenant, earliest deadline first."""
    free = list(free_s)
    late, hands = [], []
    for name in sorted(waiting):
        weight = policy.tenant_weights.get(name, 1.0)
        past, rest = _parted(waiting[name], now_s if policy.late_last else float("-inf"))
        hands.append(_Hand(rest, weight))
        late.append(_Hand(iter(past), weight))
    dealt: list[Dealt] = []
    alone = len(hands) == 1
    rounds = [(band_s, hands) for band_s in _BANDS_S]
    if any(hand.first(now_s) for hand in late):
        rounds.insert(1, (0.0, late))
    for band_s, their_hands in rounds:
        due_before_s = now_s + band_s
        playing = [hand for hand in their_hands if hand.first(due_before_s)]
        while playing and max(free) > _NOTHING:
            for hand in playing:
                hand.credit = float("inf") if alone else hand.credit + _TURN_S * hand.weight
                _turn(table, now_s, hand, due_before_s, free, orders, policy, dealt)
            playing = [hand for hand in playing if hand.first(due_before_s)]
    return dealt


def _parted(groups: Iterator[Group], now_s: float) -> tuple[list[Group], Iterator[Group]]:
    """Those that should have started before now, and the others."""
    past: list[Group] = []
    for group in groups:
        if group.start_by_s >= now_s:
            return past, chain([group], groups)
        past.append(group)
    return past, iter(())


def _turn(
    table: LaneTable,
    now_s: float,
    hand: _Hand,
    due_before_s: float,
    free: list[float],
    orders: Mapping[Terms, tuple[int, ...]],
    policy: Policy,
    dealt: list[Dealt],
) -> None:
    """One tenant spends its credit, in units of work."""
    while hand.credit > _NOTHING and (group := hand.first(due_before_s)) is not None:
        terms = table.terms_of(group, policy.preemptions_max)
        order = orders.get(terms)
        if order is None:  # newer than the plan
            order = table.cheapest_first(terms)
        if group.preemptions and group.start_by_s < now_s + _LAST_CHANCE_S:
            order = table.uninterrupted_first(order)
        for place in order:
            if free[place] <= _NOTHING:
                continue
            speed = table.lanes[place].jobs_per_second[terms.kind]
            fastest = table.fastest[terms.kind]
            cost = table.job_cost_nano_usd(place, terms.kind)
            jobs = min(hand.left, free[place] * speed, hand.credit * fastest, hand.affordable(cost))
            if jobs <= 0:
                continue
            hand.credit -= jobs / fastest
            free[place] -= jobs / speed
            if free[place] <= _NOTHING and max(free) <= _NOTHING:
                hand.credit = 0.0
            dealt.append(Dealt(group, place, jobs))
            hand.take(jobs, cost)
            break
        else:
            hand.skip()
