"""Jobs, and what a producer may demand of the place where they run."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum

import msgspec

from broker.domain.errors import ErrorCode
from broker.domain.ids import id_at

__all__ = [
    "ENDPOINTS",
    "AcceptedLine",
    "BatchStatus",
    "Constraints",
    "GroupKey",
    "RefusedLine",
    "SingleJob",
    "WaitingSpan",
    "WorkGroup",
]

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
"""The OpenAI paths that an engine serves."""


class BatchStatus(StrEnum):
    """Where a batch is, with the states that may follow."""

    READING = "reading"  # -> running, cancelling
    RUNNING = "running"  # -> finalizing, cancelling
    CANCELLING = "cancelling"  # -> finalizing
    FINALIZING = "finalizing"  # every line has ended, its files are being written -> completed, cancelled
    COMPLETED = "completed"  # -> finalizing, when its files are wanted again
    CANCELLED = "cancelled"  # likewise


class Constraints(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Hard limits on where a job may run; empty means no limit. Never relaxed, also not on retry.

    `interruptible` False keeps a job off machines that may be taken away; `max_cost_usd` is of one job, as it is
    expected when the job is placed. `pictures`: its engine reads them; `context_tokens`: its window is
    no smaller, as far as its lane says.
    """

    lanes: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    markets: tuple[str, ...] = ()
    denied_providers: tuple[str, ...] = ()
    denied_regions: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    interruptible: bool = True
    max_cost_usd: Decimal | None = None
    pictures: bool = False
    context_tokens: int = 0


class GroupKey(msgspec.Struct, frozen=True):
    """What the planner can tell jobs apart by.

    `deadline_us` is the start of its deadline bucket: no job of the group is due before.
    """

    tenant_id: str
    endpoint: str
    model: str
    constraints: str
    deadline_us: int


class WorkGroup(msgspec.Struct, frozen=True):
    """Waiting jobs that the planner can't tell apart."""

    group_id: bytes
    key: GroupKey


class WaitingSpan(msgspec.Struct, frozen=True):
    """A row of `ready`: jobs of one group with consecutive ids, waiting for a lane.

    `failed_lanes`: those that failed its jobs so far (`rules.regrouping`); `preemptions`: how often a machine was taken
    away from under them. `beginning` is that of the first job, where it has one and it is known, and `beginnings` how
    many kinds the jobs have, at most (`rules.beginnings`). `submitted_us` is their jobs'; None of those from builds
    that did not keep it.
    """

    first_job_id: bytes
    jobs_count: int
    group_id: bytes
    batch_id: bytes | None
    deadline_us: int
    body_bytes_max: int
    attempt_number: int = 1
    failures: int = 0
    crashes: int = 0
    alone: bool = False
    not_before_us: int = 0
    failed_lanes: str | None = None
    preemptions: int = 0
    beginning: bytes | None = None
    beginnings: int = 0
    submitted_us: int | None = None

    def part(self, offset: int, count: int) -> WaitingSpan:
        """`count` of its jobs, beginning `offset` jobs after the first."""
        if (offset, count) == (0, self.jobs_count):
            return self
        return msgspec.structs.replace(
            self,
            first_job_id=id_at(self.first_job_id, offset),
            jobs_count=count,
            beginning=self.beginning if offset == 0 or self.beginnings == 1 else None,
            beginnings=min(self.beginnings, count),
        )


class AcceptedLine(msgspec.Struct, frozen=True):
    """A line of a batch that will run. `beginning`: the digest of its prompt's, unkeyed, so never kept.

    `redrive_of` is the ended job that it runs again, where it does.
    """

    line_number: int
    custom_id: str
    endpoint: str
    model: str
    body: bytes
    beginning: bytes = b""
    redrive_of: bytes | None = None


class SingleJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job that came alone, or in a list, but not in a batch.

    `constraints` is their canonical text; `tags` JSON or None; `redrive_of` the ended job that it runs again;
    `beginning` as in `AcceptedLine`.
    """

    endpoint: str
    model: str
    body: bytes
    constraints: str
    submitted_us: int
    deadline_us: int
    budget_nano_usd: int | None = None
    tags: str | None = None
    redrive_of: bytes | None = None
    beginning: bytes = b""


class RefusedLine(msgspec.Struct, frozen=True):
    """A line of a batch file that will not; `custom_id` is None where it could not be read."""

    line_number: int
    custom_id: str | None
    code: ErrorCode
    message: str
