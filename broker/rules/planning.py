"""Which lanes may serve a group, in which order, and why.

Late binding: nothing here binds a job. The order is used at the moment when a lane has a free slot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from broker.domain.job import Constraints, GroupKey
from broker.domain.lane import Lane
from broker.rules.pricing import expected_job_cost_nano_usd

__all__ = ["Candidate", "GroupPlan", "Removed", "pick_lane", "plan_group"]


class Candidate(msgspec.Struct, frozen=True):
    """A lane that may serve a group. Candidates stand in merit order: cheapest expected cost per job first."""

    lane: str
    expected_job_cost_nano_usd: int
    price_version: str


class Removed(msgspec.Struct, frozen=True):
    """A lane that may not, and the filter that says so."""

    lane: str
    filter: str


class GroupPlan(msgspec.Struct, frozen=True):
    """The decision for one group; the same inputs always give the same one."""

    candidates: tuple[Candidate, ...]
    removed: tuple[Removed, ...]


def plan_group(key: GroupKey, lanes: Sequence[Lane]) -> GroupPlan:
    """Filter the lanes by the group's hard constraints, then order what is left by expected cost per job."""
    constraints = msgspec.json.decode(key.constraints, type=Constraints)
    removed = []
    candidates = []
    for lane in lanes:
        reason = _why_not(key, constraints, lane)
        if reason:
            removed.append(Removed(lane.name, reason))
        else:
            cost = expected_job_cost_nano_usd(lane.price, lane.jobs_per_second)
            candidates.append(Candidate(lane.name, cost, lane.price.version))
    candidates.sort(key=lambda candidate: (candidate.expected_job_cost_nano_usd, candidate.lane))
    return GroupPlan(tuple(candidates), tuple(removed))


def _why_not(key: GroupKey, constraints: Constraints, lane: Lane) -> str | None:
    if key.model not in lane.engine.models:
        return f"model: it does not run {key.model}"
    for name, allowed, found in (
        ("lanes", constraints.lanes, lane.name),
        ("providers", constraints.providers, lane.provider),
        ("regions", constraints.regions, lane.region),
        ("markets", constraints.markets, lane.market),
    ):
        if allowed and found not in allowed:
            return f"{name}: {found} is not among {', '.join(allowed)}"
    return None


def pick_lane(plan: GroupPlan, free_slots: Mapping[str, int]) -> tuple[Candidate, str] | None:
    """The cheapest candidate with a free slot and the reason in words; None when all are taken."""
    for rank, candidate in enumerate(plan.candidates):
        if free_slots.get(candidate.lane, 0) > 0:
            return candidate, _reason(plan, rank)
    return None


def _reason(plan: GroupPlan, rank: int) -> str:
    if len(plan.candidates) == 1:
        return "the only lane allowed"
    if rank == 0:
        return f"the cheapest of {len(plan.candidates)} allowed lanes"
    full = ", ".join(candidate.lane for candidate in plan.candidates[:rank])
    return f"the cheapest allowed lane with a free slot; {full} had none"
