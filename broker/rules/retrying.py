"""One table: what follows from each error code."""

from __future__ import annotations

from enum import Enum

from broker.domain.errors import ErrorCode
from broker.rules.evidence import Evidence, evidence_of

__all__ = [
    "CRASHES_MAX",
    "FAILURES_MAX",
    "LANE_FAULT_PAUSE_SECONDS",
    "SUSPECTED_TRIES_MAX",
    "SUSPECTED_WINDOW_PART",
    "Verdict",
    "backoff_seconds",
    "failures_max",
    "uncounted_pause_seconds",
    "verdict",
]

FAILURES_MAX = 4
"""With so many attempts failed while others succeeded beside them, the job itself ends as failed."""

SUSPECTED_TRIES_MAX = 32
SUSPECTED_WINDOW_PART = 1 / 24
"""A job that failed while others succeeded, and now fails with nothing beside it, may be what breaks its server, or may
wait for one that is out. It ends with so many tries, which take 12 minutes, once such a part of its window is over: an
hour of a day.
"""

_FAILURES_MAX_OF = {
    # What repeats by its nature isn't paid for so often: a reply without content, a job longer than its time.
    ErrorCode.ENGINE_INVALID_REPLY: 2,
    ErrorCode.ENGINE_TIMEOUT: 3,
}

CRASHES_MAX = 3
"""Crashes of a job that ran alone before it is taken for the cause."""


LANE_FAULT_PAUSE_SECONDS = 0.5
"""The pause before a job that met a lane's fault may go elsewhere."""


class Verdict(Enum):
    FINAL = "final"  # the job ends with this error; another try would be the same
    BY_EVIDENCE = "by_evidence"  # an engine's answer: see `rules.evidence`
    FREE_RETRY = "free_retry"  # another try at once, not counted: nothing speaks against the job
    SUSPECT = "suspect"  # another try alone, counted against CRASHES_MAX


_OTHERS = {
    ErrorCode.ENGINE_DIED: Verdict.SUSPECT,
    ErrorCode.LEASE_LOST: Verdict.SUSPECT,
    ErrorCode.PREEMPTED: Verdict.FREE_RETRY,
    ErrorCode.INTERRUPTED: Verdict.FREE_RETRY,
}


def verdict(code: ErrorCode) -> Verdict:
    """What follows when an attempt ended with `code`."""
    if evidence_of(code) is not None:
        return Verdict.BY_EVIDENCE
    return _OTHERS.get(code, Verdict.FINAL)


def failures_max(code: ErrorCode) -> int:
    """With how many counted failures a job ends whose last one was this."""
    return _FAILURES_MAX_OF.get(code, FAILURES_MAX)


def backoff_seconds(failures: int) -> float:
    """The pause after the `failures`-th counted failure: 0.5 s, doubling, 30 s at most."""
    return min(0.5 * 2.0 ** (min(failures, 20) - 1), 30.0)


def uncounted_pause_seconds(code: ErrorCode, attempt_number: int) -> float:
    """The pause after an attempt that says nothing against the job.

    Where it may still be the job's fault, it gets out of the others' way after some tries: from 4 s on to 30 s.
    """
    if evidence_of(code) is not Evidence.OPEN:
        return LANE_FAULT_PAUSE_SECONDS
    return min(backoff_seconds(attempt_number), 4.0) if attempt_number <= 8 else backoff_seconds(attempt_number - 4)
