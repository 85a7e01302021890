"""Which lanes may serve a group, in which order, and why: a decision as it is recorded.

Late binding: nothing here binds a job. The order is used at the moment when a lane has room.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import msgspec

from broker.domain.job import GroupKey
from broker.domain.lane import Lane
from broker.rules.decisions import Candidate, GroupPlan
from broker.rules.placement.facts import expected_cost_nano_usd, facts_of, terms_of
from broker.rules.placement.filters import bits, eligible, job_cost_nano_usd
from broker.rules.placement.learning import Speed

__all__ = [
    "BeyondShare",
    "Speeds",
    "differs",
    "pick_lane",
    "plan_group",
]

Speeds = Mapping[str, Mapping[str, Speed]]
"""What was learned, by lane and model."""

_COST_TOLERANCE = 0.1


class BeyondShare(msgspec.Struct, frozen=True):
    """A provider that had a larger part of the work of the last six hours than its share.

    Its lanes come last, and get only what is due by `due_by_us`, or what no other lane may do.
    """

    provider: str
    share: float
    part: float
    due_by_us: int

    @property
    def words(self) -> str:
        """Why a lane of it was passed over."""
        return f"{self.provider} had {self.part:.1%} of the last six hours' work and may have {self.share:.0%}"


def plan_group(key: GroupKey, lanes: Sequence[Lane]) -> GroupPlan:
    """Filter the lanes by the group's hard constraints, then order what is left by the cost of a job, as believed.

    What the doors ask before anything waits; the planner knows more.
    """
    terms = terms_of(key)
    facts = [facts_of(lane) for lane in lanes]
    found = eligible(terms, facts)
    candidates = [
        Candidate(
            str(lanes[index].name),
            expected_cost_nano_usd(lanes[index], None),
            lanes[index].price.version,
            job_cost_nano_usd(facts[index], terms.kind),
            jobs_per_second=facts[index].jobs_per_second[terms.kind],
        )
        for index in bits(found.mask)
    ]
    candidates.sort(key=lambda one: (one.busy_job_cost_nano_usd, one.expected_job_cost_nano_usd, one.lane))
    return GroupPlan(tuple(candidates), found.removed)


def differs(before: GroupPlan, now: GroupPlan) -> bool:
    """Whether a decision is another one: other lanes or prices, or costs that moved by more than a tenth."""
    if before.removed != now.removed or len(before.candidates) != len(now.candidates):
        return True
    return any(
        (old.lane, old.price_version) != (new.lane, new.price_version)
        or abs(old.expected_job_cost_nano_usd - new.expected_job_cost_nano_usd)
        > _COST_TOLERANCE * old.expected_job_cost_nano_usd
        for old, new in zip(before.candidates, now.candidates, strict=True)
    )


def pick_lane(
    plan: GroupPlan,
    with_room: Container[str],
    beyond: Mapping[str, BeyondShare] | None = None,
    *,
    can_wait: bool = False,
) -> tuple[Candidate, str] | None:
    """The first candidate that has room and the reason in words; None when none has.

    Lanes that are `beyond` their provider's share come last; where the work can wait for the others, not at all.
    """
    over = beyond or {}
    passed = [candidate for candidate in plan.candidates if candidate.lane in over]
    order = [candidate for candidate in plan.candidates if candidate.lane not in over]
    if not can_wait:
        order += passed
    for rank, candidate in enumerate(order):
        if candidate.lane in with_room:
            return candidate, _reason(order, rank) if not passed else _reason_by_share(order, rank, passed, over)
    return None


def _reason(candidates: Sequence[Candidate], rank: int) -> str:
    if len(candidates) == 1:
        return "the only lane allowed"
    if rank == 0:
        return f"the cheapest of {len(candidates)} allowed lanes"
    return f"the cheapest allowed lane with room; {_names(candidates[:rank])} had none"


def _reason_by_share(
    order: Sequence[Candidate], rank: int, passed: Sequence[Candidate], over: Mapping[str, BeyondShare]
) -> str:
    chosen = order[rank]
    if chosen.lane in over:
        why = "as it must not wait for another" if len(passed) < len(order) else "as no other is allowed"
        return f"beyond its provider's share, {why}: {over[chosen.lane].words}"
    full = f"; {_names(order[:rank])} had none" if rank else ""
    words = ", ".join(sorted({over[one.lane].words for one in passed}))
    return (
        f"the cheapest allowed lane with room within its provider's share{full};"
        f" share: {_names(passed)} passed over, as {words}"
    )


def _names(candidates: Sequence[Candidate]) -> str:
    return ", ".join(candidate.lane for candidate in candidates)
