"""What a span carries through retries, hand-backs and rescues: failed lanes, preemptions, beginnings, and its time."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.database import arrivals, submissions
from broker.database.tables import job, ready, shard_span, tenant
from broker.domain.errors import ErrorCode
from broker.domain.ids import ids_of_span, new_span, time_us_of
from broker.domain.job import Constraints, SingleJob
from broker.domain.lane import Market
from broker.ledger.tables import attempt
from broker.rules.admission import admit_line
from broker.rules.beginnings import by_beginning, digest_of, label
from broker.rules.regrouping import FAILED_LANES_MAX, another_try, failed_lanes, refusing_lanes, regroup
from broker.rules.settling import Retry
from tests.unit.builders import (
    ENDPOINT,
    LEASE_SECONDS,
    MODEL,
    NOW_US,
    SECOND_US,
    a_failure,
    a_job_ran,
    a_lane,
    a_line,
    a_preemption,
    a_price,
    a_span,
    some_lines,
)

SPOT = a_lane("spot")
OTHER = a_lane("other-spot", price=a_price(4_000_000_000))
STEADY = a_lane("steady", market=Market.ON_DEMAND, price=a_price(32_400_000_000))
SYSTEMS = ["You are a clerk.", "You are a judge.", "You are a poet."]


def a_single(submitted_us):
    body = msgspec.json.encode({"model": MODEL, "messages": [{}]})
    due_us = NOW_US + 3_600 * SECOND_US
    terms = {"constraints": "{}", "submitted_us": submitted_us, "deadline_us": due_us}
    return SingleJob(endpoint=ENDPOINT, model=MODEL, body=body, **terms)


def a_chat(custom_id, system, question="hi"):
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return a_line(custom_id, body={"messages": messages})


# ------------------------------------------------------------------------------------- preemptions and failed lanes


@pytest.mark.parametrize(
    "code", [ErrorCode.ENGINE_UNREACHABLE, ErrorCode.ENGINE_FAILED, ErrorCode.ENGINE_MISCONFIGURED]
)
def test_a_lanes_faults_are_no_preemptions(make_world, code):
    world = make_world(SPOT, OTHER)
    world.take_in(some_lines(1))
    for _ in range(3):
        (sent,) = world.claimed()
        world.record(world.ran(sent, a_failure(0, code)))
        world.health.success(sent.lane)
        world.clock.advance(60)
    (waiting,) = world.waiting()
    assert (waiting.attempt_number, waiting.preemptions, failed_lanes(waiting)) == (4, 0, ("other-spot", "spot"))
    (sent,) = world.dispatch()
    assert sent.lane == "spot"
    assert "kept off spot" not in sent.reason


def test_what_was_handed_back_before_it_began_was_not_preempted(make_world):
    world = make_world(SPOT, STEADY)
    world.take_in(some_lines(2))
    (sent,) = world.claimed()
    world.record(world.ran(sent, a_preemption(0)), world.returned(sent))
    for _ in range(3):
        for sent in world.claimed():
            assert sent.lane == "spot"
            world.record(world.returned(sent))
    assert [(span.jobs_count, span.attempt_number, span.preemptions) for span in world.waiting()] == [
        (1, 5, 1),
        (1, 5, 0),
    ]


def test_kept_off_spot_only_from_the_third_preemption_on_and_only_that_job(make_world):
    world = make_world(SPOT, OTHER, STEADY)
    world.take_in(some_lines(2))
    for _ in range(3):
        for sent in world.claimed():
            assert sent.lane == "spot"
            ended = [a_preemption(0) if sent.jobs_count == 2 or sent.spans[0].preemptions else a_job_ran(0)]
            world.record(world.ran(sent, *ended), world.returned(sent))
    world.take_in(some_lines(1, "b"))
    reasons = {sent.lane: sent.reason for sent in world.dispatch()}
    assert reasons["steady"] == "the only lane allowed, kept off spot after 3 preemptions"
    assert reasons["spot"] == "the cheapest of 3 allowed lanes"


def test_kept_off_spot_where_nothing_else_is_allowed_it_still_runs(make_world):
    world = make_world(SPOT, STEADY)
    world.take_in(some_lines(1), constraints=Constraints(lanes=("spot",)))
    for _ in range(4):
        (sent,) = world.claimed()
        assert (sent.lane, sent.reason) == ("spot", "the only lane allowed")
        world.record(world.ran(sent, a_preemption()), world.returned(sent))


def test_silence_counts_as_a_preemption_until_the_job_is_a_suspect(make_world):
    world = make_world(SPOT, STEADY)
    world.take_in(some_lines(3))
    seen = []
    for _ in range(3):
        for sent in world.claimed():
            world.renew(sent, range(sent.jobs_count))
        world.fall_silent(LEASE_SECONDS + 6)
        seen.append({(span.preemptions, span.crashes, span.alone, span.failed_lanes) for span in world.waiting()})
    assert seen == [{(1, 0, False, None)}, {(2, 0, True, None)}, {(2, 1, True, None)}]


def test_the_lanes_that_failed_a_job_travel_with_it_through_hand_back_and_rescue(make_world):
    world = make_world(SPOT, OTHER)
    world.take_in(some_lines(3))
    (sent,) = world.claimed()
    world.record(world.ran(sent, a_failure(0), a_job_ran(1), a_failure(2, ErrorCode.ENGINE_DIED)))
    world.clock.advance(2)
    first, third = world.waiting()
    assert [failed_lanes(span) for span in (first, third)] == [("spot",), ("spot",)]
    again = world.claimed()
    assert {span.failed_lanes for one in again for span in one.spans} == {"spot"}
    world.record(*(world.returned(one) for one in again))  # handed back
    assert {span.failed_lanes for span in world.waiting()} == {"spot"}
    again = world.claimed()
    world.fall_silent(LEASE_SECONDS + 6)  # rescued
    assert {span.failed_lanes for span in world.waiting()} == {"spot"}
    elsewhere = world.claimed()
    assert {one.lane for one in elsewhere} == {"other-spot"}
    world.record(*(world.ran(one, *(a_failure(n) for n in range(one.jobs_count))) for one in elsewhere))
    assert {failed_lanes(span) for span in world.waiting()} == {("other-spot", "spot")}


def test_so_many_failed_lanes_are_kept_and_no_more():
    span, retry = a_span(), Retry(0.0, 1, 0, alone=False, lane_failed=True)
    names = [f"lane-{number:02}" for number in range(FAILED_LANES_MAX + 5)]
    for name in reversed(names):
        span = another_try(another_try(span, name, retry, 0), name, retry, 0)
    assert failed_lanes(span) == tuple(names[:FAILED_LANES_MAX])


def test_lanes_that_refused_are_all_kept_for_a_forgotten_one_would_be_asked_for_ever():
    failed, refused = Retry(0.0, 1, 0, alone=False, lane_failed=True), Retry(0.0, 0, 0, alone=False, lane_refused=True)
    names = [f"lane-{number:02}" for number in range(FAILED_LANES_MAX + 5)]
    span = another_try(a_span(), "a-lane", failed, 0)
    for name in names:
        span = another_try(span, name, refused, 0)
    assert refusing_lanes(span) == tuple(names)


@pytest.mark.parametrize("code", [ErrorCode.ENGINE_UNSUITED, ErrorCode.ENGINE_REFUSED])
def test_each_of_many_lanes_is_asked_once_for_what_it_cannot_do(make_world, code):
    lanes = [a_lane(f"lane-{number:02}") for number in range(FAILED_LANES_MAX + 5)]
    world = make_world(*lanes)
    world.take_in(some_lines(1))
    while sent := world.claimed():
        assert len(world.rows(attempt)) < len(lanes), "a lane is asked twice"
        world.record(*(world.ran(one, a_failure(0, code)) for one in sent))
        world.clock.advance(1)
    asked = [row.lane for row in world.rows(attempt)]
    expected = 2 if code is ErrorCode.ENGINE_REFUSED else len(lanes)  # a second refusal is believed
    assert (len(asked), len(set(asked)), world.waiting_jobs()) == (expected, expected, 0)


# ------------------------------------------------------------------------------------------------------- beginnings


def test_jobs_that_begin_alike_get_neighbouring_ids_one_span_and_keep_their_lines(world):
    lines = [a_chat(f"{n}", SYSTEMS[n % 3], f"question {n}") for n in range(30)]
    world.take_in(b"\n".join(lines) + b"\n")
    (span,) = world.waiting()
    rows = {row.job_id: row for row in world.rows(job)}
    in_order = [rows[job_id] for job_id in ids_of_span(span.first_job_id, span.jobs_count)]
    kinds = [row.line_number % 3 for row in in_order]
    assert kinds == [1] * 10 + [2] * 10 + [0] * 10  # lines count from 1; where the first of each stands
    assert [row.line_number for row in in_order[:10]] == list(range(1, 31, 3))
    assert {row.custom_id: row.line_number for row in in_order} == {f"{n}": n + 1 for n in range(30)}
    assert (len(span.beginning), span.beginnings) == (8, 3)


def test_jobs_without_a_common_beginning_stay_as_they_came(world):
    world.take_in(some_lines(20))
    (span,) = world.waiting()
    rows = {row.job_id: row.line_number for row in world.rows(job)}
    assert [rows[job_id] for job_id in ids_of_span(span.first_job_id, 20)] == list(range(1, 21))
    assert (span.beginning, span.beginnings) == (None, 0)


def test_a_tenants_digests_say_nothing_about_anothers(world):
    line = a_chat("a", SYSTEMS[0]) + b"\n"
    for name in ("one", "two"):
        world.take_in(line, tenant_id=name)
        world.take_in(line, tenant_id=name)
    keys = {row.tenant_id: row.beginning_key for row in world.rows(tenant)}
    assert all(len(key) == 32 for key in keys.values())
    assert keys["one"] != keys["two"]
    digests = [span.beginning for span in world.waiting()]
    assert digests[0] == digests[1] != digests[2] == digests[3]
    assert digest_of([msgspec.json.encode({"role": "system", "content": SYSTEMS[0]})])[:8] not in digests


def test_a_shard_says_what_its_jobs_begin_with_as_far_as_that_is_known(make_world):
    world = make_world(a_lane(shard_jobs_max=4, slots=2))
    world.take_in(b"\n".join(a_chat(f"{n}", SYSTEMS[n % 2]) for n in range(8)) + b"\n")
    world.take_in(b"\n".join(a_chat(f"{n}", SYSTEMS[2]) for n in range(8)) + b"\n")
    mixed, alike = (span.beginning for span in world.waiting())
    sent = [shard.spans[0] for shard in world.claimed()]
    assert [(span.beginning, span.beginnings) for span in sent] == [
        (mixed, 2),
        (None, 2),
        (alike, 1),
        (alike, 1),
    ]
    assert {(row.beginning, row.beginnings) for row in world.rows(shard_span)} == {(mixed, 2), (None, 2), (alike, 1)}


def test_retries_of_a_span_become_one_again_with_its_beginning(world):
    world.take_in(b"\n".join(a_chat(f"{n}", SYSTEMS[0]) for n in range(5)) + b"\n")
    (before,) = world.waiting()
    (sent,) = world.claimed()
    world.record(world.returned(sent))
    (after,) = world.waiting()
    assert (after.beginning, after.beginnings, after.jobs_count) == (before.beginning, 1, 5)


@pytest.mark.parametrize(
    ("url", "body", "has_one"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}, False),
        ("/v1/chat/completions", {"messages": [1, 2]}, True),
        ("/v1/chat/completions", {"messages": [1], "tools": [{}]}, True),
        ("/v1/chat/completions", {"messages": [1], "response_format": {"type": "json_object"}}, True),
        ("/v1/completions", {"prompt": "x" * 1_024}, False),
        ("/v1/completions", {"prompt": "x" * 1_025}, True),
        ("/v1/completions", {"prompt": ["x" * 2_000]}, False),
        ("/v1/completions", {"prompt": list(range(2_000))}, True),
        ("/v1/embeddings", {"input": "x" * 2_000}, False),
    ],
)
def test_what_a_beginning_is(url, body, has_one):
    def beginning(**changes):
        line = {"custom_id": "a", "method": "POST", "url": url, "body": {"model": MODEL} | body | changes}
        return admit_line(1, msgspec.json.encode(line), {MODEL}).beginning

    assert bool(beginning()) == has_one
    assert beginning(temperature=0.5) == beginning()
    for name, last in (("messages", [*body.get("messages", [])[:-1], "another"]), ("prompt", body.get("prompt"))):
        if name in body:
            other = [*last[:-1], "y"] if isinstance(last, list) else last[:-1] + "y"
            assert beginning(**{name: other}) == beginning()
    assert not has_one or beginning(tools=[7], prompt="y" * 2_000, input="y") != beginning() or url == "/v1/embeddings"


class Item(msgspec.Struct, frozen=True):
    number: int
    beginning: bytes


@given(st.lists(st.sampled_from([b"", b"a", b"b", b"c"])))
def test_grouping_keeps_all_and_the_order_within(beginnings):
    items = [Item(number, beginning) for number, beginning in enumerate(beginnings)]
    grouped = by_beginning(items)
    assert sorted(grouped, key=lambda item: item.number) == items
    for kind in set(beginnings):
        places = [place for place, item in enumerate(grouped) if item.beginning == kind]
        assert places == list(range(places[0], places[0] + len(places)))
        numbers = [grouped[place].number for place in places]
        assert numbers == sorted(numbers)
    if items:
        labelled = label(grouped, b"k" * 32)
        assert labelled.beginnings == (len(set(beginnings)) if any(beginnings) else 0)
        assert (labelled.beginning is None) == (grouped[0].beginning == b"")


@given(st.lists(st.sampled_from([None, b"a" * 8, b"b" * 8]), min_size=1, max_size=12), st.data())
def test_parts_put_together_again_never_say_fewer_kinds_than_there_are(kinds, data):
    alike = len(set(kinds)) == 1
    whole = a_span(len(kinds), beginning=kinds[0], beginnings=0 if set(kinds) == {None} else len(set(kinds)))
    cut = data.draw(st.integers(1, len(kinds)))
    parts = [whole.part(0, cut)] + ([whole.part(cut, len(kinds) - cut)] if cut < len(kinds) else [])
    for part, inside in zip(parts, (kinds[:cut], kinds[cut:]), strict=False):
        assert part.beginnings >= (0 if whole.beginnings == 0 else len(set(inside)))
        assert part.beginning in (None, inside[0])
    (again,) = regroup(parts)
    assert again.beginning == whole.beginning
    assert again.beginnings >= whole.beginnings
    assert not alike or again == whole


# --------------------------------------------------------------------------------------------------------- its time


def test_submitted_is_the_databases_time_whatever_this_machine_says(world):
    world.take_in(some_lines(2))
    submitted_us = world.clock()
    (span,) = world.waiting()
    assert (span.submitted_us, time_us_of(span.first_job_id)) == (submitted_us, submitted_us)
    world.clock.advance(3)
    (sent,) = world.claimed()
    started_us = world.clock()
    world.record(world.ran(sent, a_job_ran(0, started_us=started_us), a_failure(1, started_us=started_us)))
    world.clock.advance(5)
    (again,) = world.claimed()
    world.record(world.ran(again, a_job_ran(0, started_us=started_us + 5 * SECOND_US)))
    rows = sorted(world.rows(attempt), key=lambda row: row.queue_us)
    assert {row.submitted_us for row in rows} == {row.submitted_us for row in world.rows(job)} == {submitted_us}
    assert [row.queue_us for row in rows] == [3 * SECOND_US, 3 * SECOND_US, 8 * SECOND_US]


def test_single_jobs_of_one_span_are_submitted_with_the_first_and_have_ids_of_the_time_they_were_stored(world):
    jobs = [a_single(world.clock() - wait_us) for wait_us in (900, 3_000_000, 500)]
    stored_us = world.clock()

    def work(connection):
        submissions.ensure_tenant(connection, "t", stored_us)
        return submissions.insert(connection, "t", jobs, stored_us, b"k" * 32)

    ids = world.database.write(work)
    (span,) = world.waiting()
    assert span.submitted_us == stored_us - 3_000_000
    assert {row.submitted_us for row in world.rows(job)} == {span.submitted_us}
    assert {time_us_of(job_id) for job_id in ids} == {stored_us}
    came = world.read(arrivals.count_jobs, stored_us, stored_us + 1_000)
    assert [arrived.jobs for arrived in came] == [3]
    assert world.read(arrivals.count_jobs, stored_us - 3_000_000, stored_us) == []


@given(st.lists(st.integers(0, 3), min_size=2, max_size=60))
def test_later_spans_of_one_clock_have_greater_ids(steps_ms):
    at_us, ids = NOW_US, []
    for step_ms in steps_ms:
        at_us += step_ms * 1_000
        ids.append(new_span(at_us))
    assert ids == sorted(set(ids))
    assert all(span[12:] == bytes(4) and span[6] >> 4 == 7 and span[8] >> 6 == 2 for span in ids)


def test_what_an_older_build_left_in_line_has_the_time_of_its_ids(world):
    world.take_in(some_lines(1))
    world.database.write(lambda connection: connection.execute(ready.update().values(submitted_us=None)))
    world.clock.advance(1)
    (sent,) = world.claimed()
    world.record(world.ran(sent, a_job_ran(0)))
    (row,) = world.rows(attempt)
    assert row.submitted_us == time_us_of(row.job_id)
