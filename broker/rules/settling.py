"""What one attempt's end means for its job: the end of it, or another try."""

from __future__ import annotations

from typing import assert_never

import msgspec

from broker.domain.errors import ErrorCode
from broker.domain.outcome import Outcome
from broker.rules.retrying import CRASHES_MAX, LANE_FAULT_PAUSE_SECONDS, Verdict, backoff_seconds, verdict

__all__ = ["MISCONFIGURED_MAX", "Ended", "Retry", "Settlement", "settle"]

MISCONFIGURED_MAX = 10
"""Tries that met an engine without the model, the endpoint or the key, with pauses from 0.5 s to 30 s, over two minutes
in all. By then each lane that may serve the job is set up wrongly or never had room, and the job ends.
"""


class Ended(msgspec.Struct, frozen=True):
    """The job ends with this attempt."""

    outcome: Outcome
    error_code: ErrorCode | None


class Retry(msgspec.Struct, frozen=True):
    """The job goes back to waiting.

    `lane_failed`: its lane's engine failed it, or was not there. `was_preempted`: its machine was taken away, with
    notice or without; where it is the job itself that is suspected, that is no such sign.
    """

    delay_seconds: float
    failures: int
    crashes: int
    alone: bool
    lane_failed: bool = False
    was_preempted: bool = False


class Settlement(msgspec.Struct, frozen=True):
    """`outcome` is the attempt's own; `then` is what follows for the job, None when another attempt decided it."""

    outcome: Outcome
    then: Ended | Retry | None


_SUCCEEDED = Settlement(Outcome.SUCCEEDED, Ended(Outcome.SUCCEEDED, None))


def settle(
    outcome: Outcome,
    code: ErrorCode | None,
    already_ended: bool,
    *,
    failures: int,
    crashes: int,
    alone: bool,
    misconfigured: int = 0,
) -> Settlement:
    """Decide. The first valid success wins; whatever comes after a job's end is superseded or just its own.

    `misconfigured`: how many tries of the job ended as ENGINE_MISCONFIGURED before, where this one does too.
    """
    if outcome is Outcome.SUCCEEDED:
        if already_ended:
            return Settlement(Outcome.SUPERSEDED, None)
        return _SUCCEEDED
    if already_ended:
        return Settlement(outcome, None)
    if outcome is Outcome.CANCELLED:
        return Settlement(outcome, Ended(outcome, code))
    if code is ErrorCode.ENGINE_MISCONFIGURED:
        if misconfigured + 1 >= MISCONFIGURED_MAX:
            return Settlement(outcome, Ended(Outcome.FAILED, code))
        return Settlement(
            outcome, Retry(backoff_seconds(misconfigured + 1), failures, crashes, alone, lane_failed=True)
        )
    return Settlement(
        outcome, _follow(code or ErrorCode.ENGINE_FAILED, failures=failures, crashes=crashes, alone=alone)
    )


def _follow(code: ErrorCode, *, failures: int, crashes: int, alone: bool) -> Ended | Retry:
    found = verdict(code, failures)
    match found:
        case Verdict.FINAL:
            return Ended(Outcome.FAILED, code)
        case Verdict.RETRY:
            return Retry(backoff_seconds(failures + 1), failures + 1, crashes, alone, lane_failed=True)
        case Verdict.LANE_FAULT:
            return Retry(LANE_FAULT_PAUSE_SECONDS, failures, crashes, alone, lane_failed=True)
        case Verdict.FREE_RETRY:
            return Retry(0.0, failures, crashes, alone, was_preempted=code is ErrorCode.PREEMPTED)
        case Verdict.SUSPECT:
            # A crash in company is no evidence against any one job; a crash alone is.
            counted = crashes + 1 if alone else crashes
            if counted >= CRASHES_MAX:
                return Ended(Outcome.FAILED, ErrorCode.POISONED)
            return Retry(
                0.0,
                failures,
                counted,
                alone=True,
                lane_failed=code is ErrorCode.ENGINE_DIED,
                was_preempted=code is ErrorCode.LEASE_LOST and not alone,
            )
    assert_never(found)
