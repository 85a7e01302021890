"""Limits on suppliers' shares of the work: a budget of speed, corrected by what was done so far.

Where a supplier's cheap lanes would go beyond its share, the next dearer lanes of others are run steadily instead,
and the limited supplier takes what is left: the swings, that is. Banning and unbanning it would churn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from broker.rules.placement.lanes import LaneNow
from broker.rules.placement.policy import Policy
from broker.rules.placement.table import LaneTable

__all__ = ["ShareRoom", "share_room"]

_NOTHING = 1e-9


class ShareRoom(msgspec.Struct):
    """`steady`: how many instances of a lane to run so that others stay below their share, by place.

    `swinging` are the lanes of suppliers at their limit: they come after the steady ones.
    """

    steady: dict[int, int] = {}
    swinging: frozenset[int] = frozenset()

    def ordered(self, order: Sequence[int]) -> list[int]:
        """The merit order, with steady lanes before the first swinging one."""
        if not self.steady:
            return list(order)
        first = next((rank for rank, place in enumerate(order) if place in self.swinging), len(order))
        before = [place for place in order[:first] if place not in self.steady]
        steady = [place for place in order if place in self.steady]
        return [*before, *steady, *(place for place in order[first:] if place not in self.steady)]

    def allowed(self, place: int, limit: int) -> int:
        return min(limit, self.steady.get(place, limit))


def share_room(
    table: LaneTable,
    limits: Sequence[int],
    states: Sequence[LaneNow],
    speeds: Sequence[float],
    order: Sequence[int],
    demand: float,
    done: Mapping[str, float],
    policy: Policy,
) -> ShareRoom:
    """Spread the mean demand over the lanes, in merit order, each supplier up to its share."""
    total = sum(done.values())
    budgets: dict[str, float] = {}
    for provider in table.providers:
        share = policy.share_of(provider)
        if share < 1.0:
            excess = done.get(provider, 0.0) - share * total
            budgets[provider] = max(0.0, share * demand - excess / policy.share_feedback_s)
    steady: dict[int, int] = {}
    swinging = set()
    for place in order:
        if demand <= _NOTHING:
            break
        provider = table.lanes[place].provider
        wanted = min(demand, limits[place] * speeds[place])
        given = min(wanted, budgets.get(provider, wanted))
        if given < wanted - _NOTHING:
            swinging.add(place)
        if provider in budgets:
            budgets[provider] -= given
        demand -= given
        if swinging and given == wanted > _NOTHING:
            steady[place] = _rounded(given / speeds[place], states[place].live, policy)
    return ShareRoom(steady, frozenset(swinging))


def _rounded(instances: float, live: int, policy: Policy) -> int:
    whole = int(instances + _NOTHING)
    rest = instances - whole
    return whole + (rest > (policy.keep_above if live > whole else policy.add_above))
