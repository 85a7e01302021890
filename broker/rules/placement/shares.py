"""Limits on providers' shares of the work: a budget of speed, corrected by what was done lately.

Where a provider's cheap lanes would go beyond its share, the next dearer lanes of others are run steadily instead,
and the limited provider takes what is left: the swings, that is. Banning and unbanning it would churn.

Lanes whose instances are there anyway can be left and used from one moment to the next: a provider that had more than
its share gets what nobody else has room for, and only what must not wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from broker.rules.placement.filters import bits
from broker.rules.placement.lanes import LaneNow
from broker.rules.placement.policy import Policy
from broker.rules.placement.table import LaneTable
from broker.rules.placement.work import Group, Terms

__all__ = ["ShareLimit", "ShareRoom", "WorkLog", "done_by_provider", "over_share", "share_limits", "share_room"]

_NOTHING = 1e-9
_BUCKET_S = 600


class WorkLog:
    """Jobs done by lane and kind over the last `window_s`, ten minutes at a time. Told the time."""

    def __init__(self, window_s: float) -> None:
        self._buckets: deque[tuple[int, dict[tuple[str, str], float]]] = deque()
        self._total: dict[tuple[str, str], float] = {}
        self._kept = int(window_s // _BUCKET_S)

    def add(self, at_s: float, lane: str, kind: str, jobs: float) -> None:
        """Jobs ended then. Times come in order."""
        bucket = int(at_s // _BUCKET_S)
        if not self._buckets or self._buckets[-1][0] < bucket:
            self._buckets.append((bucket, {}))
        key = (lane, kind)
        for counts in (self._buckets[-1][1], self._total):
            counts[key] = counts.get(key, 0.0) + jobs

    def jobs(self, now_s: float) -> Mapping[tuple[str, str], float]:
        """How many, by lane and kind."""
        first = int(now_s // _BUCKET_S) - self._kept
        while self._buckets and self._buckets[0][0] < first:
            for key, jobs in self._buckets.popleft()[1].items():
                self._total[key] -= jobs
        return self._total


def done_by_provider(table: LaneTable, jobs: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Units of work by provider, of jobs by lane and kind; lanes that are gone are left out."""
    providers = {lane.name: lane.provider for lane in table.lanes}
    done = dict.fromkeys(table.providers, 0.0)
    for (lane, kind), count in jobs.items():
        if lane in providers:
            done[providers[lane]] += table.work(kind, count)
    return done


def over_share(done: Mapping[str, float], policy: Policy) -> dict[str, float]:
    """The providers that had more than their share, each with the part of the work that it had."""
    total = sum(done.values())
    if total <= _NOTHING:
        return {}
    return {name: units / total for name, units in done.items() if units > policy.share_of(name) * total}


class ShareLimit(msgspec.Struct, frozen=True):
    """A provider had the `part` of the work, and may have the `share`.

    Where another lane could do it, only work that must start by `start_by_s` may still go there.
    """

    provider: str
    share: float
    part: float
    start_by_s: float


def share_limits(
    table: LaneTable,
    now_s: float,
    states: Sequence[LaneNow],
    groups: Sequence[Group],
    done: Mapping[str, float],
    policy: Policy,
) -> tuple[ShareLimit, ...]:
    """The providers at their limit, and where it gives way to deadlines. `groups` in the order of `start_by_s`.

    Work can wait for the other providers as long as they could do all that is due before it in the soft part of the
    time left. What must start within two minutes never waits.
    """
    over = over_share(done, policy)
    if not over:
        return ()
    others = [0.0 if lane.provider in over else float(now.ready) for lane, now in zip(table.lanes, states, strict=True)]
    speeds: dict[Terms, float] = {}
    ahead_s = 0.0
    start_by_s = now_s + policy.share_lead_s
    for group in groups:
        if group.jobs <= 0:
            continue
        terms = table.terms_of(group, policy.preemptions_max)
        if terms not in speeds:
            by_index = table.speeds(terms.kind)
            speeds[terms] = sum(others[index] * by_index[index] for index in bits(table.eligible(terms).mask))
        if speeds[terms] <= _NOTHING:  # nobody else can do it, so that it takes nobody's time either
            continue
        ahead_s += table.work(terms.kind, group.jobs) / speeds[terms]
        if ahead_s > policy.soft_pace * (group.start_by_s - now_s - policy.share_lead_s):
            start_by_s = max(start_by_s, group.start_by_s)
    return tuple(ShareLimit(name, policy.share_of(name), part, start_by_s) for name, part in sorted(over.items()))


class ShareRoom(msgspec.Struct):
    """`steady`: how many instances of a lane to run so that others stay below their share, by index.

    `swinging` are the lanes of providers at their limit: they come after the steady ones.
    """

    steady: dict[int, int] = {}
    swinging: frozenset[int] = frozenset()

    def ordered(self, order: Sequence[int]) -> list[int]:
        """The merit order, with steady lanes before the first swinging one."""
        if not self.steady:
            return list(order)
        first = next((rank for rank, index in enumerate(order) if index in self.swinging), len(order))
        before = [index for index in order[:first] if index not in self.steady]
        steady = [index for index in order if index in self.steady]
        return [*before, *steady, *(index for index in order[first:] if index not in self.steady)]

    def allowed(self, index: int, limit: int) -> int:
        return min(limit, self.steady.get(index, limit))


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
    """Spread the mean demand over the lanes, in merit order, each provider up to its share."""
    total = sum(done.values())
    budgets: dict[str, float] = {}
    for provider in table.providers:
        share = policy.share_of(provider)
        if share < 1.0:
            excess = done.get(provider, 0.0) - share * total
            budgets[provider] = max(0.0, share * demand - excess / policy.share_feedback_s)
    steady: dict[int, int] = {}
    swinging = set()
    for index in order:
        if demand <= _NOTHING:
            break
        provider = table.lanes[index].provider
        wanted = min(demand, limits[index] * speeds[index])
        given = min(wanted, budgets.get(provider, wanted))
        if given < wanted - _NOTHING:
            swinging.add(index)
        if provider in budgets:
            budgets[provider] -= given
        demand -= given
        if swinging and given == wanted > _NOTHING:
            steady[index] = _rounded(given / speeds[index], states[index].live, policy)
    return ShareRoom(steady, frozenset(swinging))


def _rounded(instances: float, live: int, policy: Policy) -> int:
    whole = int(instances + _NOTHING)
    rest = instances - whole
    return whole + (rest > (policy.keep_above if live > whole else policy.add_above))
