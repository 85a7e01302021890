"""What one attempt's end means for its job: the end of it, or another try."""

from __future__ import annotations

from typing import assert_never

import msgspec

from broker.domain.errors import ErrorCode
from broker.domain.outcome import Outcome
from broker.rules.evidence import Evidence, evidence_of
from broker.rules.retrying import (
    CRASHES_MAX,
    SUSPECTED_TRIES_MAX,
    SUSPECTED_WINDOW_PART,
    Verdict,
    backoff_seconds,
    failures_max,
    uncounted_pause_seconds,
    verdict,
)

__all__ = ["SUCCEEDED", "Around", "Ended", "Retry", "Settlement", "settle"]


class Around(msgspec.Struct, frozen=True):
    """What else is known when an attempt failed.

    `lane_works`: its lane has done other jobs, and didn't just fail several in a row. `lanes_left`: another lane may
    serve the job, and has not said that it can't. `refused_before`: another lane has refused it already.
    `window_part`: how much of the time that the job has is over. `patience`: how many more failures it may have than on
    a server that hardly fails any other.
    """

    lane_works: bool = False
    lanes_left: bool = False
    refused_before: bool = False
    window_part: float = 0.0
    patience: int = 0


_NOTHING_KNOWN = Around()


class Ended(msgspec.Struct, frozen=True):
    """The job ends with this attempt."""

    outcome: Outcome
    error_code: ErrorCode | None


class Retry(msgspec.Struct, frozen=True):
    """The job goes back to waiting.

    `lane_failed`: its lane's engine failed it, or was not there; other lanes come first. `lane_refused`: this lane
    can't do it, or says so, and is not asked again. `was_preempted`: its machine was taken away, with notice or
    without; where it is the job itself that is suspected, that is no such sign.
    """

    delay_seconds: float
    failures: int
    crashes: int
    alone: bool
    lane_failed: bool = False
    lane_refused: bool = False
    was_preempted: bool = False


class Settlement(msgspec.Struct, frozen=True):
    """`outcome` is the attempt's own; `then` is what follows for the job, None when another attempt decided it."""

    outcome: Outcome
    then: Ended | Retry | None


SUCCEEDED = Settlement(Outcome.SUCCEEDED, Ended(Outcome.SUCCEEDED, None))
"""Of the first success of a job."""


def settle(
    outcome: Outcome,
    code: ErrorCode | None,
    already_ended: bool,
    *,
    attempt_number: int,
    failures: int,
    crashes: int,
    alone: bool,
    around: Around = _NOTHING_KNOWN,
) -> Settlement:
    """Decide. The first valid success wins; whatever comes after a job's end is superseded or just its own."""
    if outcome is Outcome.SUCCEEDED:
        if already_ended:
            return Settlement(Outcome.SUPERSEDED, None)
        return SUCCEEDED
    if already_ended:
        return Settlement(outcome, None)
    if outcome is Outcome.CANCELLED:
        return Settlement(outcome, Ended(outcome, code))
    why = code or ErrorCode.ENGINE_FAILED
    before = Retry(0.0, failures, crashes, alone)
    match verdict(why):
        case Verdict.FINAL:
            return Settlement(outcome, Ended(Outcome.FAILED, why))
        case Verdict.FREE_RETRY:
            preempted = why is ErrorCode.PREEMPTED
            return Settlement(outcome, msgspec.structs.replace(before, was_preempted=preempted))
        case Verdict.SUSPECT:
            return Settlement(outcome, _suspect(why, before))
        case Verdict.BY_EVIDENCE:
            return Settlement(outcome, _by_evidence(why, before, attempt_number, around))
    assert_never(verdict(why))


def _by_evidence(code: ErrorCode, before: Retry, attempt_number: int, around: Around) -> Ended | Retry:
    """A job is to blame only where others succeed on that lane, or where a second lane says the same."""
    ended = Ended(Outcome.FAILED, code)
    pause_s = uncounted_pause_seconds(code, attempt_number)
    match evidence_of(code):
        case Evidence.SERVER | None:
            return msgspec.structs.replace(before, delay_seconds=pause_s, lane_failed=True)
        case Evidence.LIMIT:
            return msgspec.structs.replace(before, delay_seconds=pause_s, lane_failed=not around.lane_works)
        case Evidence.UNSUITED:
            return msgspec.structs.replace(before, lane_refused=True) if around.lanes_left else ended
        case Evidence.JOB:
            if around.lane_works or around.refused_before or not around.lanes_left:
                return ended
            return msgspec.structs.replace(before, lane_refused=True)
        case Evidence.OPEN:
            is_suspected = (
                before.failures > 0
                and attempt_number >= SUSPECTED_TRIES_MAX
                and around.window_part >= SUSPECTED_WINDOW_PART
            )
            if not around.lane_works and not is_suspected:
                return msgspec.structs.replace(before, delay_seconds=pause_s, lane_failed=True)
            failures = before.failures + 1
            if failures >= failures_max(code) + around.patience or is_suspected:
                return ended
            # A lane that works fails now and then: another may be several times as dear, and is for the second time.
            return msgspec.structs.replace(
                before, delay_seconds=backoff_seconds(failures), failures=failures, lane_failed=failures > 1
            )
    assert_never(evidence_of(code))


def _suspect(code: ErrorCode, before: Retry) -> Ended | Retry:
    # A crash in company is no evidence against any one job; a crash alone is.
    counted = before.crashes + 1 if before.alone else before.crashes
    if counted >= CRASHES_MAX:
        return Ended(Outcome.FAILED, ErrorCode.POISONED)
    return msgspec.structs.replace(
        before,
        crashes=counted,
        alone=True,
        lane_failed=code is ErrorCode.ENGINE_DIED,
        was_preempted=code is ErrorCode.LEASE_LOST and not before.alone,
    )
