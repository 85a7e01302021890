"""What a worker says happened: past tense, frozen, numbered per shard, signed by its lane."""

from __future__ import annotations

from typing import Annotated

import msgspec

from broker.domain.errors import ErrorCode
from broker.domain.outcome import Outcome
from broker.domain.usage import Count, Moment, Usage, UsageBasis

__all__ = ["JobRan", "JobsRan", "ShardReturned", "WorkerEvent"]

StatusCode = Annotated[int, msgspec.Meta(ge=0, le=999)]
"""HTTP's, or 0 where nothing answered."""


class JobRan(msgspec.Struct, frozen=True, array_like=True):
    """One attempt as the worker saw it.

    `started_us` and `ended_us` are the worker's UTC clock; `run_us` is its monotonic clock. `body` is the
    reply, or the engine's error body; `message` is for the producer's error file; neither enters the ledger.
    The digests are BLAKE2b-256 keyed with the job's salt.

    `usage_basis` says how `usage`'s tokens are known, whatever the outcome; None from a worker of an older build.
    `usage_upper` bounds them where they aren't. `retry_after_s`: for how long the server asks to be left alone, 0 where
    it doesn't. `first_token_us`: when its first token came, where that is known.
    """

    index: Count
    outcome: Outcome
    status_code: StatusCode
    started_us: Moment
    ended_us: Moment
    run_us: Count
    usage: Usage
    body: bytes
    error_code: ErrorCode | None = None
    message: str = ""
    request_id: str = ""
    request_digest: bytes = b""
    reply_digest: bytes = b""
    usage_basis: UsageBasis | None = None
    usage_upper: Usage | None = None
    retry_after_s: Count = 0
    first_token_us: Moment | None = None


class JobsRan(msgspec.Struct, frozen=True, array_like=True, tag="jobs_ran"):
    """Attempts of one shard that ended since the last event; `number` counts a shard's events from 0."""

    shard_id: bytes
    lane: str
    worker_id: str
    number: int
    jobs: tuple[JobRan, ...]


class ShardReturned(msgspec.Struct, frozen=True, array_like=True, tag="shard_returned"):
    """A worker hands back what it will not do (preemption, shutdown); what it did was in earlier events."""

    shard_id: bytes
    lane: str
    worker_id: str
    number: int
    reason: ErrorCode


WorkerEvent = JobsRan | ShardReturned
