"""A decision on a group, as it is made and recorded: lanes that may serve it, in order, and why the others may not."""

from __future__ import annotations

import msgspec

__all__ = ["Candidate", "GroupPlan", "Removed"]


class Candidate(msgspec.Struct, frozen=True):
    """A lane that may serve a group. Candidates stand in the order in which their room is used.

    `expected_job_cost_nano_usd` is at the load that the lane had lately, and what is set aside for a job;
    `busy_job_cost_nano_usd` at full load, by which lanes are compared. `ready_in_s` is 0 where an instance is up;
    `jobs_per_second` is that of all instances wanted there.
    """

    lane: str
    expected_job_cost_nano_usd: int
    price_version: str
    busy_job_cost_nano_usd: int = 0
    ready_in_s: float = 0.0
    jobs_per_second: float = 0.0


class Removed(msgspec.Struct, frozen=True):
    """A lane that may not, and the filter that says so."""

    lane: str
    filter: str


class GroupPlan(msgspec.Struct, frozen=True):
    """The decision for one group; the same inputs always give the same one."""

    candidates: tuple[Candidate, ...]
    removed: tuple[Removed, ...]
