"""What the door answers with, as it writes it and as its clients read it.

Times are ISO 8601 (UTC) and money is exact decimal dollars, both as text. A field that is added needs a default, for an
older broker doesn't send it; one that a client doesn't know is skipped.
"""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["BatchState", "InstanceView", "JobError", "JobState", "LaneOut", "LaneView", "PricesTaken", "Submitted"]

_ENDED = frozenset({"succeeded", "failed", "cancelled", "expired"})
_FINISHED = frozenset({"completed", "cancelled"})


class Submitted(msgspec.Struct, frozen=True, kw_only=True):
    """A job is durable. `new` is False where its idempotency key was known; then it is the job of that time."""

    id: str
    object: str = "job"
    new: bool


class JobError(msgspec.Struct, frozen=True):
    """Why a job did not succeed."""

    code: str | None = None
    message: str | None = None


class LaneOut(msgspec.Struct, frozen=True, kw_only=True):
    """A lane that a waiting job could have, and that gets no work: for the fault `reason`, or by hand, as `state` says.

    `since` and `until` are of a fault; after that one job tries it.
    """

    lane: str
    state: str
    reason: str | None = None
    since: str | None = None
    until: str | None = None


class JobState(msgspec.Struct, frozen=True, kw_only=True):
    """How far a job is; `status` is waiting, running, succeeded, failed, cancelled or expired.

    `expected_late_at`: when it is expected to end, if that is after its deadline. `unknown_usd`: the most that it can
    have cost besides `cost_usd`, which is what is known. `lanes_out`: of a waiting job, the lanes that could do it
    and get no work.
    """

    id: str
    object: str = "job"
    status: str
    endpoint: str
    model: str
    constraints: dict[str, Any]
    tags: dict[str, str]
    submitted_at: str
    deadline: str
    ended_at: str | None
    budget_usd: str | None
    cost_usd: str
    attempts: int
    lane: str | None
    error: JobError | None
    cancel_requested: bool
    expected_late_at: str | None
    batch_id: str | None
    custom_id: str | None
    redrive_of: str | None
    unknown_usd: str = "0"
    lanes_out: tuple[LaneOut, ...] = ()

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status in _ENDED


class BatchState(msgspec.Struct, frozen=True, kw_only=True):
    """How far a batch is; `status` is reading, running, cancelling, finalizing, completed or cancelled.

    `lines_read`, without empty lines, and the counts grow while it is read and run. `expected_late_at` and
    `unknown_usd` as for a job. `rerun_of`: the batch whose lines it runs again, where it does; the counts are of those
    lines alone.
    """

    id: str
    object: str = "batch"
    status: str
    name: str | None
    created_at: str
    deadline: str
    finished_at: str | None
    max_cost_usd: str | None
    constraints: dict[str, Any]
    bytes_in: int
    bytes_read: int
    is_read: bool
    lines_read: int
    refused_lines: int
    accepted_jobs: int
    succeeded: int
    failed: int
    cancelled: int
    expired: int
    attempts: int
    cost_usd: str
    wasted_usd: str
    expected_late_at: str | None
    unknown_usd: str = "0"
    rerun_of: str | None = None

    @property
    def ended(self) -> int:
        """Lines that need nothing more."""
        return self.succeeded + self.failed + self.cancelled + self.expired + self.refused_lines

    @property
    def is_finished(self) -> bool:
        """Whether its files are there."""
        return self.status in _FINISHED


class LaneView(msgspec.Struct, frozen=True, kw_only=True):
    """A lane. `state`: open, paused, draining, or drained once a draining lane has nothing left.

    `resting`: the fault for which it gets no work, whatever its state, since `resting_since` and until `resting_until`;
    then one job tries it. `slots`: shards that its live
    workers run at once. As the planner last saw it: instances `ready`, and `desired`; `trouble`, for which it gets no
    work; `job_seconds` of a busy instance for one job of a model, as learned; `is_slower`: much more than usual.
    """

    name: str
    state: str
    resting: str | None
    provider: str
    region: str
    accelerator: str
    market: str
    models: tuple[str, ...]
    slots: int
    shards: int
    price: str
    price_source: str
    stand_in: bool
    ready: int
    desired: int
    trouble: str | None
    job_seconds: dict[str, float]
    is_slower: bool
    resting_since: str | None = None
    resting_until: str | None = None


class InstanceView(msgspec.Struct, frozen=True, kw_only=True):
    """An instance of a lane; `state` is starting, running, draining, stopped or lost.

    `seconds` up as far as is known, and what they cost at the list price that holds now, in nano-dollars; None where
    the lane has left the catalog, or is paid by the token.
    """

    id: str
    lane: str
    state: str
    resource_id: str
    worker_id: str
    slots: int
    started_at: str
    ready_at: str | None
    draining_at: str | None
    stopped_at: str | None
    last_seen_at: str
    seconds: int
    list_cost_nano_usd: int | None


class PricesTaken(msgspec.Struct, frozen=True):
    """The book that a file of prices became, and of how many lanes it has the price."""

    book: str
    prices: int
