"""Single jobs: which may run, how they become spans, and how one of many is cancelled."""

from __future__ import annotations

import threading
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.database import batches, cancelling, lane_states, submissions
from broker.database.tables import cancel_request, job, payload
from broker.domain.errors import ErrorCode
from broker.domain.ids import id_at
from broker.domain.job import Constraints, SingleJob
from broker.domain.lane import LaneState
from broker.domain.shard import Bitmap
from broker.intake.single_jobs import KeyTaken, SingleJobs, Submitted
from broker.ledger.tables import job_outcome
from broker.rules.admission import Refusal
from broker.rules.submission import Admitted, JobRequest, admit_job
from broker.rules.windows import WINDOW_SECONDS_MAX, deadline_us_of, window_seconds_of
from tests.unit.builders import (
    DAY_SECONDS,
    ENDPOINT,
    MODEL,
    NOW_US,
    SECOND_US,
    a_lane,
    a_price,
    an_identity,
    some_lines,
)

BODY = msgspec.Raw(msgspec.json.encode({"model": MODEL, "messages": [{}]}))
CHEAP, DEAR = a_lane("cheap"), a_lane("dear", price=a_price(36_000_000_000))


def a_request(**changes):
    return JobRequest(**{"body": BODY} | changes)


def a_single(**changes):
    fields = {"endpoint": ENDPOINT, "model": MODEL, "body": bytes(BODY), "constraints": "{}", "submitted_us": NOW_US}
    return SingleJob(**fields | {"deadline_us": NOW_US + DAY_SECONDS * SECOND_US} | changes)


def admit(**changes):
    return admit_job(a_request(**changes), [CHEAP, DEAR], "t", NOW_US)


def put_in(world, *singles):
    world.database.write(lambda connection: submissions.ensure_tenant(connection, "t", NOW_US))
    return world.database.write(lambda connection: submissions.insert(connection, "t", singles, NOW_US, b"k" * 32))


@given(st.integers(1, 30), st.sampled_from("smhd"))
def test_windows_are_read_as_they_are_written(count, unit):
    assert window_seconds_of(f"{count}{unit}") == count * {"s": 1, "m": 60, "h": 3_600, "d": 86_400}[unit]


@pytest.mark.parametrize("text", ["", "0s", "31d", "1.5h", "-1s", "1 h", "\u0661h", "9" * 20 + "s"])
def test_other_windows_are_refused(text):
    with pytest.raises(ValueError, match="between 1s and 30d"):
        window_seconds_of(text)


def test_a_deadline_lies_ahead_with_its_time_zone():
    assert deadline_us_of("2027-01-15T09:00:01+01:00", NOW_US) == NOW_US + SECOND_US
    for text in ("2027-01-15T08:00:00Z", "2027-03-15T08:00:00Z", "2027-01-15T08:00:01", "tomorrow"):
        with pytest.raises(ValueError, match="it must"):
            deadline_us_of(text, NOW_US)
    assert WINDOW_SECONDS_MAX == 30 * DAY_SECONDS


def test_a_budget_binds_a_job_to_the_lanes_that_keep_to_it():
    cheap_cost = 10_000  # a hundredth of a second at a nano-dollar a microsecond
    assert admit(budget_usd=Decimal(cheap_cost) / 10**9).job.constraints == '{"lanes":["cheap"]}'
    assert admit(budget_usd=Decimal(10 * cheap_cost) / 10**9).job.constraints == "{}"
    refused = admit(budget_usd=Decimal(cheap_cost - 1) / 10**9)
    assert (refused.code, refused.field) == (ErrorCode.BUDGET_EXCEEDED, "budget_usd")
    assert "cheap" in refused.message


def test_a_job_that_no_lane_may_or_can_run_is_told_why():
    refused = admit(constraints=Constraints(regions=("moon",)))
    assert (refused.code, "moon" in refused.message) == (ErrorCode.NO_LANE_ALLOWED, True)
    small = a_lane("small", message_bytes_max=64_000)
    long = msgspec.Raw(msgspec.json.encode({"model": MODEL, "messages": ["x" * 64_000]}))
    refused = admit_job(a_request(body=long), [small], "t", NOW_US)
    assert isinstance(refused, Refusal)
    assert (refused.code, refused.field) == (ErrorCode.BODY_TOO_LARGE, "body")
    assert "can carry is 62,912 at most" in refused.message


def test_jobs_of_one_group_that_are_due_together_are_one_span(world):
    later = NOW_US + DAY_SECONDS * SECOND_US + 50_000_000
    ids = put_in(world, a_single(), a_single(model="m2"), a_single(tags='{"a":"b"}'), a_single(deadline_us=later))
    counts = [(span.first_job_id, span.jobs_count) for span in world.waiting()]
    assert sorted(counts) == sorted([(ids[0], 2), (ids[1], 1), (ids[3], 1)])
    assert ids[2] == id_at(ids[0], 1)
    assert world.count(job) == world.count(payload) == 4


def test_cancelling_one_of_a_span_leaves_the_others_in_line(world):
    ids = put_in(world, *[a_single()] * 5)
    for place in (2, 0, 4):
        world.database.write(lambda connection, place=place: cancelling.request(connection, "t", ids[place], NOW_US))
    told = []
    world.wakeups.endings.watch(ids[2], lambda: told.append(2))
    world.wakeups.endings.watch(ids[3], lambda: told.append(3))
    world.closer.step()
    assert [(span.first_job_id, span.jobs_count) for span in world.waiting()] == [(ids[1], 1), (ids[3], 1)]
    assert {row.job_id: row.error_code for row in world.rows(job_outcome)} == dict.fromkeys(
        (ids[0], ids[2], ids[4]), "job_cancelled"
    )
    assert (told, world.count(cancel_request)) == ([2], 0)
    assert world.verified().faults == []


def test_the_lease_door_names_the_jobs_that_are_to_be_cancelled(world):
    ids = put_in(world, *[a_single()] * 6)
    [shard] = world.dispatch()
    for place in (1, 4):
        world.database.write(lambda connection, place=place: cancelling.request(connection, "t", ids[place], NOW_US))
    world.closer.step()
    assert world.count(cancel_request) == 2
    assert Bitmap(world.claim(shard).cancelled_jobs).missing(6) == [0, 2, 3, 5]
    assert Bitmap(world.renew(shard, range(6)).cancelled_jobs).missing(6) == [0, 2, 3, 5]


@pytest.mark.parametrize("cancelled", [0, 1])
def test_of_two_batches_only_the_cancelled_ones_shards_hear_of_it(make_world, cancelled):
    world = make_world(a_lane(slots=2))
    records = [world.take_in(some_lines(2, prefix)) for prefix in "ab"]
    sent = {shard.batch_id: shard for shard in world.dispatch()}
    ours, other = records[cancelled].batch_id, records[1 - cancelled].batch_id
    world.database.write(lambda connection: batches.request_cancel(connection, "t", ours, NOW_US))
    assert (world.claim(sent[ours]).cancelled, world.claim(sent[other]).cancelled) == (True, False)
    assert (world.renew(sent[ours], [0]).cancelled, world.renew(sent[other], [0]).cancelled) == (True, False)


def test_an_overdue_job_expires(world):
    put_in(world, a_single(deadline_us=NOW_US + SECOND_US))
    world.clock.advance(2)
    world.closer.step()
    [row] = world.rows(job_outcome)
    assert (row.outcome, row.error_code) == ("expired", "job_expired")


def test_a_lane_that_is_held_gets_no_shard(make_world):
    world = make_world(CHEAP, DEAR)
    world.database.write(lambda connection: lane_states.set_state(connection, "cheap", LaneState.PAUSED, NOW_US))
    put_in(world, a_single())
    assert [shard.lane for shard in world.dispatch()] == ["dear"]
    for state in (LaneState.DRAINING, LaneState.OPEN):
        world.database.write(lambda connection, state=state: lane_states.set_state(connection, "cheap", state, NOW_US))
    put_in(world, a_single())
    assert [shard.lane for shard in world.dispatch()] == ["cheap"]


def test_a_key_stands_for_one_job_within_a_commit_and_after_it(world):
    door = SingleJobs(world.database, world.clock, world.wakeups)
    answers = []
    same, other = b"s" * 32, b"o" * 32
    for jobs in ([("a", same)], [("a", same)], [("a", other)], [("b", same), ("b", other)], [("c", same)]):
        door.offer(an_identity(), [Admitted(a_single(), key, print_) for key, print_ in jobs], answers.append)
    door.close()
    thread = threading.Thread(target=door.run)
    thread.start()
    thread.join()
    [first], [second], third, fourth, [fifth] = answers
    assert (first.is_new, second) == (True, Submitted(first.job_id, is_new=False))
    assert (third, fourth) == (KeyTaken(0), KeyTaken(1))
    assert fifth.job_id != first.job_id
    assert world.count(job) == 2


def test_an_answer_that_raises_holds_up_no_other_answer_and_ends_no_thread(world):
    """Such as that of a producer whose event loop has closed meanwhile."""
    submitting = SingleJobs(world.database, world.clock, world.wakeups)
    answers = []

    def gone(_answer):
        raise RuntimeError("the event loop is closed")

    for answer in (gone, answers.append, gone, answers.append):
        submitting.offer(an_identity("t"), [Admitted(a_single(), None, b"")], answer)
    thread = threading.Thread(target=submitting.run)
    thread.start()
    submitting.offer(an_identity("t"), [Admitted(a_single(), None, b"")], answers.append)
    submitting.close()
    thread.join(10)
    assert not thread.is_alive()
    assert [len(answer) for answer in answers] == [1, 1, 1]
    assert world.count(job) == 5
