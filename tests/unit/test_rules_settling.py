from __future__ import annotations

import pytest

from broker.domain.errors import ErrorCode
from broker.domain.outcome import Outcome
from broker.rules.retrying import CRASHES_MAX, FAILURES_MAX, Verdict, backoff_seconds, verdict
from broker.rules.settling import Ended, Retry, Settlement, settle

FRESH = {"failures": 0, "crashes": 0, "alone": False}

# Written out once more, so that a changed verdict is a decision made twice.
EXPECTED = {
    Verdict.RETRY: {
        ErrorCode.ENGINE_BUSY,
        ErrorCode.ENGINE_FAILED,
        ErrorCode.ENGINE_TIMEOUT,
        ErrorCode.ENGINE_INVALID_REPLY,
    },
    Verdict.LANE_FAULT: {ErrorCode.ENGINE_UNREACHABLE, ErrorCode.ENGINE_MISCONFIGURED},
    Verdict.FREE_RETRY: {ErrorCode.PREEMPTED, ErrorCode.INTERRUPTED},
    Verdict.SUSPECT: {ErrorCode.ENGINE_DIED, ErrorCode.LEASE_LOST},
}


def _expected(code):
    return next((found for found, codes in EXPECTED.items() if code in codes), Verdict.FINAL)


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_has_its_verdict(code):
    assert verdict(code, 0) is _expected(code)


@pytest.mark.parametrize("code", ErrorCode)
def test_what_is_counted_ends_at_the_limit_and_the_rest_never_does(code):
    counted = _expected(code) is Verdict.RETRY
    assert verdict(code, FAILURES_MAX - 2) is _expected(code)
    assert verdict(code, FAILURES_MAX - 1) is (Verdict.FINAL if counted else _expected(code))


@pytest.mark.parametrize("code", ErrorCode)
def test_an_attempt_that_failed_settles_by_its_verdict(code):
    settled = settle(Outcome.FAILED, code, False, failures=1, crashes=1, alone=False)
    then = {
        Verdict.FINAL: Ended(Outcome.FAILED, code),
        Verdict.RETRY: Retry(1.0, 2, 1, alone=False, lane_failed=True),
        Verdict.LANE_FAULT: Retry(0.5, 1, 1, alone=False, lane_failed=True),
        Verdict.FREE_RETRY: Retry(0.0, 1, 1, alone=False, was_preempted=code is ErrorCode.PREEMPTED),
        Verdict.SUSPECT: Retry(
            0.0,
            1,
            1,
            alone=True,
            lane_failed=code is ErrorCode.ENGINE_DIED,
            was_preempted=code is ErrorCode.LEASE_LOST,
        ),
    }
    assert settled == Settlement(Outcome.FAILED, then[_expected(code)])


def test_the_first_success_wins_and_the_second_is_superseded():
    assert settle(Outcome.SUCCEEDED, None, False, **FRESH) == Settlement(
        Outcome.SUCCEEDED, Ended(Outcome.SUCCEEDED, None)
    )
    assert settle(Outcome.SUCCEEDED, None, True, **FRESH) == Settlement(Outcome.SUPERSEDED, None)


@pytest.mark.parametrize("outcome", [one for one in Outcome if one is not Outcome.SUCCEEDED])
def test_nothing_follows_for_a_job_that_has_ended(outcome):
    assert settle(outcome, ErrorCode.ENGINE_FAILED, True, **FRESH) == Settlement(outcome, None)


def test_a_cancelled_attempt_ends_its_job_as_cancelled():
    settled = settle(Outcome.CANCELLED, ErrorCode.BATCH_CANCELLED, False, **FRESH)
    assert settled.then == Ended(Outcome.CANCELLED, ErrorCode.BATCH_CANCELLED)


def test_a_failure_without_a_code_is_the_engines():
    assert settle(Outcome.FAILED, None, False, **FRESH).then == Retry(0.5, 1, 0, alone=False, lane_failed=True)


def test_a_crash_in_company_is_no_evidence_and_three_alone_are():
    then = settle(Outcome.LOST, ErrorCode.LEASE_LOST, False, **FRESH).then
    assert then == Retry(0.0, 0, 0, alone=True, was_preempted=True)
    for crashes in range(1, CRASHES_MAX):
        then = settle(
            Outcome.LOST, ErrorCode.LEASE_LOST, False, failures=0, crashes=then.crashes, alone=then.alone
        ).then
        assert then == Retry(0.0, 0, crashes, alone=True)
    then = settle(Outcome.LOST, ErrorCode.ENGINE_DIED, False, failures=0, crashes=then.crashes, alone=then.alone).then
    assert then == Ended(Outcome.FAILED, ErrorCode.POISONED)
    assert CRASHES_MAX == 3


def test_a_failure_keeps_a_suspect_alone_and_a_preemption_forgets_nothing():
    assert settle(Outcome.FAILED, ErrorCode.ENGINE_BUSY, False, failures=0, crashes=2, alone=True).then == Retry(
        0.5, 1, 2, alone=True, lane_failed=True
    )
    assert settle(Outcome.PREEMPTED, ErrorCode.PREEMPTED, False, failures=3, crashes=2, alone=True).then == Retry(
        0.0, 3, 2, alone=True, was_preempted=True
    )


def test_pauses_double_up_to_half_a_minute():
    assert [backoff_seconds(failures) for failures in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
