from __future__ import annotations

import pytest

from broker.domain.errors import ErrorCode
from broker.domain.outcome import Outcome
from broker.rules.evidence import Evidence, evidence_of
from broker.rules.retrying import (
    CRASHES_MAX,
    FAILURES_MAX,
    LANE_FAULT_PAUSE_SECONDS,
    Verdict,
    backoff_seconds,
    uncounted_pause_seconds,
    verdict,
)
from broker.rules.settling import Around, Ended, Retry, Settlement, settle

FRESH = {"attempt_number": 1, "failures": 0, "crashes": 0, "alone": False}
ALONE = Around()
IN_COMPANY = Around(lane_works=True)
ELSEWHERE = Around(lanes_left=True)

# Written out once more, so that a changed verdict is a decision made twice.
EVIDENCE = {
    Evidence.SERVER: {
        ErrorCode.ENGINE_STARTING,
        ErrorCode.ENGINE_UNREACHABLE,
        ErrorCode.ENGINE_OUT_OF_CREDIT,
        ErrorCode.ENGINE_MOVED,
    },
    Evidence.LIMIT: {ErrorCode.ENGINE_BUSY, ErrorCode.ENGINE_UNAVAILABLE},
    Evidence.OPEN: {
        ErrorCode.ENGINE_MISCONFIGURED,
        ErrorCode.ENGINE_FAILED,
        ErrorCode.ENGINE_TIMEOUT,
        ErrorCode.ENGINE_INVALID_REPLY,
    },
    Evidence.UNSUITED: {ErrorCode.ENGINE_UNSUITED},
    Evidence.JOB: {ErrorCode.ENGINE_REFUSED},
}
OTHERS = {
    Verdict.FREE_RETRY: {ErrorCode.PREEMPTED, ErrorCode.INTERRUPTED},
    Verdict.SUSPECT: {ErrorCode.ENGINE_DIED, ErrorCode.LEASE_LOST},
}
COUNTED = {ErrorCode.ENGINE_INVALID_REPLY: 2, ErrorCode.ENGINE_TIMEOUT: 3}


def _of(table, code):
    return next((found for found, codes in table.items() if code in codes), None)


def failed(code, around=ALONE, **changes):
    settled = settle(Outcome.FAILED, code, False, **FRESH | changes, around=around)
    assert settled.outcome is Outcome.FAILED
    return settled.then


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_has_its_verdict(code):
    assert evidence_of(code) is _of(EVIDENCE, code)
    by_evidence = Verdict.BY_EVIDENCE if _of(EVIDENCE, code) else None
    assert verdict(code) is (by_evidence or _of(OTHERS, code) or Verdict.FINAL)


@pytest.mark.parametrize("code", ErrorCode)
@pytest.mark.parametrize("attempt_number", [1, 2, 50])
def test_a_server_in_trouble_ends_no_job_however_often(code, attempt_number):
    """Nothing else succeeds there: whatever it answers but a refusal, the job waits uncounted."""
    then = failed(code, attempt_number=attempt_number, failures=1)
    if _of(EVIDENCE, code) in (Evidence.SERVER, Evidence.LIMIT, Evidence.OPEN):
        assert isinstance(then, Retry)
        assert (then.failures, then.crashes, then.alone, then.lane_failed) == (1, 0, False, True)
        assert 0 < then.delay_seconds <= (4.0 if attempt_number < 50 else 30.0)


@pytest.mark.parametrize("code", sorted(EVIDENCE[Evidence.SERVER] | EVIDENCE[Evidence.LIMIT]))
def test_what_speaks_against_the_server_alone_is_never_counted(code):
    assert failed(code, IN_COMPANY, failures=3).failures == 3


def test_a_limit_that_others_get_through_is_no_failure_of_the_lane():
    assert not failed(ErrorCode.ENGINE_BUSY, IN_COMPANY).lane_failed
    assert failed(ErrorCode.ENGINE_BUSY, ALONE).lane_failed


@pytest.mark.parametrize("code", sorted(EVIDENCE[Evidence.OPEN]))
def test_a_failure_in_company_counts_and_at_the_limit_ends_the_job(code):
    limit = COUNTED.get(code, FAILURES_MAX)
    for failures in range(limit - 1):
        then = failed(code, IN_COMPANY, failures=failures)
        assert then == Retry(0.5 * 2**failures, failures + 1, 0, alone=False, lane_failed=failures > 0)
    assert failed(code, IN_COMPANY, failures=limit - 1) == Ended(Outcome.FAILED, code)


def test_a_refusal_ends_a_job_where_others_succeed_or_no_other_lane_is_left():
    ended = Ended(Outcome.FAILED, ErrorCode.ENGINE_REFUSED)
    assert failed(ErrorCode.ENGINE_REFUSED, IN_COMPANY) == ended
    assert failed(ErrorCode.ENGINE_REFUSED, Around(lane_works=True, lanes_left=True)) == ended
    assert failed(ErrorCode.ENGINE_REFUSED, ALONE) == ended
    assert failed(ErrorCode.ENGINE_REFUSED, Around(lanes_left=True, refused_before=True)) == ended
    elsewhere = failed(ErrorCode.ENGINE_REFUSED, ELSEWHERE)
    assert elsewhere == Retry(0.0, 0, 0, alone=False, lane_refused=True)


def test_what_a_server_is_unsuited_for_goes_to_each_other_lane():
    for around in (ELSEWHERE, Around(lane_works=True, lanes_left=True, refused_before=True)):
        assert failed(ErrorCode.ENGINE_UNSUITED, around) == Retry(0.0, 0, 0, alone=False, lane_refused=True)
    assert failed(ErrorCode.ENGINE_UNSUITED, IN_COMPANY) == Ended(Outcome.FAILED, ErrorCode.ENGINE_UNSUITED)


def test_what_failed_in_company_and_then_alone_for_long_ends_once_a_part_of_its_window_is_over():
    late, early = Around(window_part=0.05), Around(window_part=0.04)
    code = ErrorCode.ENGINE_FAILED
    assert failed(code, late, failures=1, attempt_number=32) == Ended(Outcome.FAILED, code)
    for around, failures, attempt_number in ((early, 1, 32), (late, 0, 32), (late, 1, 31)):
        assert isinstance(failed(code, around, failures=failures, attempt_number=attempt_number), Retry)
    assert isinstance(failed(ErrorCode.ENGINE_UNAVAILABLE, late, failures=3, attempt_number=99), Retry)


def test_other_verdicts():
    assert failed(ErrorCode.PREEMPTED, failures=1) == Retry(0.0, 1, 0, alone=False, was_preempted=True)
    assert failed(ErrorCode.INTERRUPTED, failures=1) == Retry(0.0, 1, 0, alone=False)
    assert failed(ErrorCode.ENGINE_DIED) == Retry(0.0, 0, 0, alone=True, lane_failed=True)
    assert failed(ErrorCode.LEASE_LOST) == Retry(0.0, 0, 0, alone=True, was_preempted=True)
    assert failed(ErrorCode.REPLY_TOO_LARGE) == Ended(Outcome.FAILED, ErrorCode.REPLY_TOO_LARGE)


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
    assert failed(None) == failed(ErrorCode.ENGINE_FAILED)


def test_a_crash_in_company_is_no_evidence_and_three_alone_are():
    then = settle(Outcome.LOST, ErrorCode.LEASE_LOST, False, **FRESH).then
    assert then == Retry(0.0, 0, 0, alone=True, was_preempted=True)
    for crashes in range(1, CRASHES_MAX):
        before = {"crashes": then.crashes, "alone": then.alone}
        then = settle(Outcome.LOST, ErrorCode.LEASE_LOST, False, **FRESH | before).then
        assert then == Retry(0.0, 0, crashes, alone=True)
    before = {"crashes": then.crashes, "alone": then.alone}
    then = settle(Outcome.LOST, ErrorCode.ENGINE_DIED, False, **FRESH | before).then
    assert then == Ended(Outcome.FAILED, ErrorCode.POISONED)
    assert CRASHES_MAX == 3


def test_a_failure_keeps_a_suspect_alone_and_a_preemption_forgets_nothing():
    suspect = {"crashes": 2, "alone": True}
    assert failed(ErrorCode.ENGINE_FAILED, IN_COMPANY, **suspect) == Retry(0.5, 1, 2, alone=True)
    then = settle(Outcome.PREEMPTED, ErrorCode.PREEMPTED, False, **FRESH | suspect | {"failures": 3}).then
    assert then == Retry(0.0, 3, 2, alone=True, was_preempted=True)


def test_what_may_be_the_jobs_fault_gets_out_of_the_others_way():
    pauses = [uncounted_pause_seconds(ErrorCode.ENGINE_FAILED, number) for number in range(1, 13)]
    assert pauses == [0.5, 1, 2, 4, 4, 4, 4, 4, 8, 16, 30, 30]
    assert uncounted_pause_seconds(ErrorCode.ENGINE_BUSY, 50) == LANE_FAULT_PAUSE_SECONDS


def test_pauses_double_up_to_half_a_minute():
    assert [backoff_seconds(failures) for failures in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
