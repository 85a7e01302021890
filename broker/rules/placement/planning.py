"""One plan: how many instances each lane should hold, and which lanes serve which group, with the reasons.

Pure: the same situation, memory and policy give the same plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from broker.rules.decisions import Candidate, GroupPlan
from broker.rules.placement.covering import Cover, cover
from broker.rules.placement.filters import bits
from broker.rules.placement.lanes import LaneNow, Supply
from broker.rules.placement.needs import Pool, pools_of
from broker.rules.placement.policy import Policy
from broker.rules.placement.table import LaneTable
from broker.rules.placement.work import Group, Stream, Terms

__all__ = ["Decided", "Memory", "Plan", "Situation", "make_plan"]


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """All that a plan follows from, beside the lanes' facts. `done`: units of work by provider, of a week at most."""

    now_s: float
    states: tuple[LaneNow, ...]
    groups: Sequence[Group]
    streams: Sequence[Stream]
    done: Mapping[str, float] = {}


class Memory(msgspec.Struct, frozen=True):
    """What one plan leaves for the next: how many instances were wanted lately, by lane, with the time."""

    generation: int = 0
    wanted: tuple[tuple[float, tuple[int, ...]], ...] = ()


class Decided(msgspec.Struct, frozen=True):
    """The decision for one group; when it is expected to be done, where that is known, and for how much."""

    group_id: str
    plan: GroupPlan
    finish_s: float | None
    cost_nano_usd: int


class Plan(msgspec.Struct, frozen=True):
    """The decision. `orders`: for each terms, the lanes (by index) whose free slots they use, first to last."""

    generation: int
    now_s: float
    desired: tuple[int, ...]
    starts: tuple[int, ...]
    stops: tuple[int, ...]
    orders: dict[Terms, tuple[int, ...]]
    decided: tuple[Decided, ...]


def make_plan(table: LaneTable, situation: Situation, memory: Memory, policy: Policy) -> tuple[Plan, Memory]:
    """The next plan, and what to remember for the one after."""
    groups = sorted(situation.groups, key=lambda group: (group.start_by_s, group.group_id))
    pools = pools_of(table, situation.now_s, groups, situation.streams, policy)
    fleet = cover(table, situation.states, pools, policy, situation.done)
    wanted = _recently_wanted(memory, situation.now_s, tuple(fleet.desired), policy)
    desired = _held(table, fleet, situation.states, wanted, pools)
    live = [now.live for now in situation.states]
    terms = {table.terms_of(group, policy.preemptions_max) for group in groups}
    terms |= {stream.terms for stream in situation.streams}
    orders = _orders(table, pools, desired, terms)
    generation = memory.generation + 1
    plan = Plan(
        generation=generation,
        now_s=situation.now_s,
        desired=desired,
        starts=tuple(max(0, want - have) for want, have in zip(desired, live, strict=True)),
        stops=tuple(max(0, have - want) for want, have in zip(desired, live, strict=True)),
        orders=orders,
        decided=_decided(table, situation, groups, pools, desired, orders, policy),
    )
    return plan, Memory(generation, wanted)


def _recently_wanted(
    memory: Memory, now_s: float, desired: tuple[int, ...], policy: Policy
) -> tuple[tuple[float, tuple[int, ...]], ...]:
    kept = [(at_s, counts) for at_s, counts in memory.wanted if now_s - at_s < policy.hold_s]
    return (*kept, (now_s, desired))


def _held(
    table: LaneTable,
    fleet: Cover,
    states: Sequence[LaneNow],
    wanted: Sequence[tuple[float, tuple[int, ...]]],
    pools: Sequence[Pool],
) -> tuple[int, ...]:
    """An instance that is up stays until it was not wanted for the whole hold time, and what replaces it is up."""
    held = []
    for index, lane in enumerate(table.lanes):
        if lane.supply is Supply.FIXED:
            held.append(states[index].ready)
            continue
        lately = max(counts[index] for _, counts in wanted)
        held.append(max(fleet.desired[index], min(lately, states[index].live)))
    for pool in pools:
        speeds = table.mean_speeds(pool.mix)
        short = pool.hard - sum(min(held[index], states[index].ready) * speeds[index] for index in bits(pool.mask))
        for index in bits(pool.mask):
            while short > 0 and held[index] < states[index].ready and speeds[index] > 0:
                held[index] += 1
                short -= speeds[index]
    return tuple(held)


def _orders(
    table: LaneTable, pools: Sequence[Pool], desired: Sequence[int], terms: set[Terms]
) -> dict[Terms, tuple[int, ...]]:
    """For each terms its lanes, those first that are good at its kind, compared to what else they could do.

    Lanes that are about as good at it stand in the order of what a job costs there.
    """
    mix: dict[str, float] = {}
    for pool in pools:
        for kind, units in pool.mix.items():
            mix[kind] = mix.get(kind, 0.0) + units
    mean = table.mean_speeds(mix)
    worth: dict[tuple[str, int], tuple[int, ...]] = {}
    orders = {}
    for one in sorted(terms, key=lambda one: (one.model, one.kind)):
        mask = table.eligible(one).mask
        key = (one.kind, mask)
        if key not in worth:
            speeds = table.speeds(one.kind)
            contested = _contested(pools, mask, desired, mean)
            ranked = sorted(
                (
                    -round((speeds[index] / mean[index] if mean[index] else 0.0) * (1.0 - contested[index] / 2), 3),
                    table.job_cost_nano_usd(index, one.kind),
                    index,
                )
                for index in bits(mask)
            )
            worth[key] = tuple(index for _, _, index in ranked)
        orders[one] = worth[key]
    return orders


def _contested(pools: Sequence[Pool], mask: int, desired: Sequence[int], mean: Sequence[float]) -> list[float]:
    """By lane, how much of it narrower pools need, 0 to 1; wider ones should leave it to them."""
    contested = [0.0] * len(desired)
    for pool in pools:
        if pool.mask & ~mask or pool.mask == mask:
            continue
        capacity = sum(desired[index] * mean[index] for index in bits(pool.mask))
        part = min(1.0, pool.soft / capacity) if capacity > 0 else 0.0
        for index in bits(pool.mask):
            contested[index] = min(1.0, contested[index] + part)
    return contested


def _decided(
    table: LaneTable,
    situation: Situation,
    groups: Sequence[Group],
    pools: Sequence[Pool],
    desired: Sequence[int],
    orders: Mapping[Terms, tuple[int, ...]],
    policy: Policy,
) -> tuple[Decided, ...]:
    spare = {pool.mask: _spare(table, pool, desired) for pool in pools}
    plans: dict[Terms, GroupPlan] = {}
    ahead: dict[int, float] = {}
    made = []
    for group in groups:
        terms = table.terms_of(group, policy.preemptions_max)
        may = table.eligible(terms)
        plan = plans.get(terms)
        if plan is None:
            candidates = _candidates(table, situation.states, desired, terms, orders[terms])
            plan = plans[terms] = GroupPlan(candidates, may.removed)
        ahead[may.mask] = ahead.get(may.mask, 0.0) + table.work(terms.kind, group.jobs)
        first = plan.candidates[0] if plan.candidates else None
        finish_s = None
        if first and spare.get(may.mask, 0.0) > 0:
            finish_s = situation.now_s + first.ready_in_s + ahead[may.mask] / spare[may.mask]
        cost = round(group.jobs * first.busy_job_cost_nano_usd) if first else 0
        made.append(Decided(group.group_id, plan, finish_s, cost))
    return tuple(made)


def _spare(table: LaneTable, pool: Pool, desired: Sequence[int]) -> float:
    """The speed that the wanted fleet has for what of the pool can wait."""
    speeds = table.mean_speeds(pool.mix)
    return max(0.0, sum(desired[index] * speeds[index] for index in bits(pool.mask)) - pool.urgent)


def _candidates(
    table: LaneTable, states: Sequence[LaneNow], desired: Sequence[int], terms: Terms, order: Sequence[int]
) -> tuple[Candidate, ...]:
    candidates = []
    for index in sorted(order, key=lambda index: desired[index] == 0):  # stable: those in use first
        lane = table.lanes[index]
        busy_cost = table.job_cost_nano_usd(index, terms.kind)
        candidates.append(
            Candidate(
                lane=lane.name,
                expected_job_cost_nano_usd=lane.expected_nano_usd.get(terms.kind, busy_cost),
                price_version=lane.price_version,
                busy_job_cost_nano_usd=busy_cost,
                ready_in_s=0.0 if states[index].ready else lane.start_s,
                jobs_per_second=desired[index] * lane.jobs_per_second[terms.kind],
            )
        )
    return tuple(candidates)
