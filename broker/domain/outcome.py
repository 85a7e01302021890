"""How an attempt, and how a job, ended."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["CostBasis", "Outcome"]


class Outcome(StrEnum):
    """How one attempt ended. A job ends with the first attempt whose outcome is final for it."""

    SUCCEEDED = "succeeded"  # a valid reply, and the first one for its job
    FAILED = "failed"  # the engine said no, or the reply was invalid
    PREEMPTED = "preempted"  # handed back when the machine was taken
    CANCELLED = "cancelled"  # stopped on request
    EXPIRED = "expired"  # its deadline passed
    LOST = "lost"  # the worker fell silent; what it cost is unknown, with an upper bound
    SUPERSEDED = "superseded"  # a valid reply, but another attempt had already ended the job


class CostBasis(StrEnum):
    """Where `cost_nano_usd` comes from; each stands above the ones after it."""

    BILLED = "billed"  # the cloud's bill, reconciled
    ATTRIBUTED = "attributed"  # the instance's metered time, divided among the jobs that shared it
    LIST = "list"  # price book x usage
    UNKNOWN = "unknown"  # nothing to read; `cost_upper_nano_usd` bounds it
