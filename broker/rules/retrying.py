"""One table: what follows from each error code."""

from __future__ import annotations

from enum import Enum

from broker.domain.errors import ErrorCode

__all__ = [
    "CRASHES_MAX",
    "FAILURES_MAX",
    "LANE_FAULT_PAUSE_SECONDS",
    "Verdict",
    "backoff_seconds",
    "is_lane_fault",
    "verdict",
]

FAILURES_MAX = 4
"""With so many attempts failed by the engine's fault, the job itself ends as failed."""

CRASHES_MAX = 3
"""Crashes of a job that ran alone before it is taken for the cause."""


LANE_FAULT_PAUSE_SECONDS = 0.5
"""The pause before a job that met a lane's fault may go elsewhere."""


class Verdict(Enum):
    FINAL = "final"  # the job ends with this error; another try would be the same
    RETRY = "retry"  # another try, after a pause, counted against FAILURES_MAX
    LANE_FAULT = "lane_fault"  # another try, not counted against the job: the lane rests (`broker.health`)
    FREE_RETRY = "free_retry"  # another try at once, not counted: nothing speaks against the job
    SUSPECT = "suspect"  # another try alone, counted against CRASHES_MAX


_TABLE = {
    ErrorCode.INVALID_LINE: Verdict.FINAL,
    ErrorCode.INVALID_CUSTOM_ID: Verdict.FINAL,
    ErrorCode.DUPLICATE_CUSTOM_ID: Verdict.FINAL,
    ErrorCode.INVALID_URL: Verdict.FINAL,
    ErrorCode.INVALID_BODY: Verdict.FINAL,
    ErrorCode.UNKNOWN_MODEL: Verdict.FINAL,
    ErrorCode.STREAMING_UNSUPPORTED: Verdict.FINAL,
    ErrorCode.LINE_TOO_LARGE: Verdict.FINAL,
    ErrorCode.BODY_TOO_LARGE: Verdict.FINAL,
    ErrorCode.INVALID_FIELD: Verdict.FINAL,
    ErrorCode.NO_LANE_ALLOWED: Verdict.FINAL,
    ErrorCode.DEADLINE_IMPOSSIBLE: Verdict.FINAL,
    ErrorCode.BATCH_EXPIRED: Verdict.FINAL,
    ErrorCode.BATCH_CANCELLED: Verdict.FINAL,
    ErrorCode.JOB_EXPIRED: Verdict.FINAL,
    ErrorCode.JOB_CANCELLED: Verdict.FINAL,
    ErrorCode.BUDGET_EXCEEDED: Verdict.FINAL,
    ErrorCode.ENGINE_REFUSED: Verdict.FINAL,
    ErrorCode.ENGINE_BUSY: Verdict.RETRY,
    ErrorCode.ENGINE_FAILED: Verdict.RETRY,
    ErrorCode.ENGINE_TIMEOUT: Verdict.RETRY,
    ErrorCode.ENGINE_INVALID_REPLY: Verdict.RETRY,
    ErrorCode.ENGINE_UNSUITED: Verdict.FINAL,
    ErrorCode.ENGINE_STARTING: Verdict.LANE_FAULT,
    ErrorCode.ENGINE_UNAVAILABLE: Verdict.LANE_FAULT,
    ErrorCode.ENGINE_UNREACHABLE: Verdict.LANE_FAULT,
    ErrorCode.ENGINE_MOVED: Verdict.LANE_FAULT,
    ErrorCode.ENGINE_OUT_OF_CREDIT: Verdict.LANE_FAULT,
    ErrorCode.ENGINE_MISCONFIGURED: Verdict.LANE_FAULT,
    ErrorCode.REPLY_TOO_LARGE: Verdict.FINAL,
    ErrorCode.ENGINE_DIED: Verdict.SUSPECT,
    ErrorCode.PREEMPTED: Verdict.FREE_RETRY,
    ErrorCode.INTERRUPTED: Verdict.FREE_RETRY,
    ErrorCode.LEASE_LOST: Verdict.SUSPECT,
    ErrorCode.POISONED: Verdict.FINAL,
}


def verdict(code: ErrorCode, failures: int) -> Verdict:
    """What follows when an attempt ended with `code`, after `failures` counted ones before it."""
    found = _TABLE[code]
    if found is Verdict.RETRY and failures + 1 >= FAILURES_MAX:
        return Verdict.FINAL
    return found


def is_lane_fault(code: ErrorCode) -> bool:
    """Whether the lane, not the job, is at fault."""
    return _TABLE[code] is Verdict.LANE_FAULT


def backoff_seconds(failures: int) -> float:
    """The pause after the `failures`-th counted failure: 0.5 s, doubling, 30 s at most."""
    return min(0.5 * 2.0 ** (failures - 1), 30.0)
