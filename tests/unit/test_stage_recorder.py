from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.bus.envelope import Kind, seal
from broker.database.tables import result
from broker.domain.errors import ErrorCode
from broker.domain.events import JobsRan
from broker.domain.outcome import Outcome
from broker.domain.shard import ShardState
from broker.domain.usage import Usage
from broker.ledger.explaining import explain, find_job, where_is
from broker.ledger.tables import attempt, job_outcome, ledger_batch
from broker.rules.retrying import FAILURES_MAX
from tests.unit.builders import GENERATE_ONLY, SECOND_US, a_failure, a_job_ran, a_lane, a_signer, some_lines, splits


@pytest.fixture
def claimed(world):
    world.record_of_batch = world.take_in(some_lines(4))
    (shard,) = world.claimed()
    return shard


def test_a_shard_whose_jobs_all_succeeded_is_done(world, claimed):
    world.record(world.ran(claimed, *map(a_job_ran, range(4))))
    kept = world.shard(claimed)
    assert (kept.state, kept.closed_us, len(kept.recorded)) == (ShardState.DONE, world.clock(), 4)
    counts = world.counts(claimed.batch_id)
    assert (counts.succeeded, counts.ended, counts.attempts, counts.input_tokens, counts.output_tokens) == (
        4,
        4,
        4,
        4,
        8,
    )
    assert (counts.cost_nano_usd, counts.wasted_nano_usd) == (4_000, 0)
    assert {row.job_id: row.body for row in world.rows(result)} == {
        claimed.job_id_at(index): b'{"n":%d}' % index for index in range(4)
    }
    found = world.verified()
    assert (found.rows, found.cost_nano_usd, found.faults) == (8, 4_000, [])


def test_an_attempt_says_where_it_ran_what_it_used_and_what_it_cost(world, claimed):
    ran = a_job_ran(
        1, usage=Usage(5, 1, 7, 2, 1_234), request_digest=b"q" * 32, reply_digest=b"r" * 32, request_id="id"
    )
    world.record(world.ran(claimed, ran))
    (row,) = world.rows(attempt)
    assert (row.job_id, row.shard_id, row.shard_index, row.attempt_number) == (
        claimed.job_id_at(1), claimed.shard_id, 1, 1
    )  # fmt: skip
    assert (row.lane, row.provider, row.region, row.market, row.worker_id) == (
        "lane-a", "google-tpu", "europe-west4", "spot", "w1"
    )  # fmt: skip
    assert (row.input_tokens, row.cached_input_tokens, row.output_tokens, row.reasoning_tokens) == (5, 1, 7, 2)
    assert (row.accelerator_us, row.cost_nano_usd, row.cost_basis) == (1_234, 1_234, "attributed")
    assert (row.request_digest, row.reply_digest, row.provider_request_id) == (b"q" * 32, b"r" * 32, "id")
    assert row.reply_bytes == len(ran.body)
    assert row.decisive


def test_the_same_events_twice_change_nothing(world, claimed):
    events = [world.ran(claimed, a_job_ran(0), a_failure(1)), world.ran(claimed, a_job_ran(2), number=1)]
    world.record(*events)
    before = world.counts(claimed.batch_id), world.count(attempt), world.count(ledger_batch), world.waiting()
    world.record(*events)
    world.record(events[1], events[0], events[0])
    assert (world.counts(claimed.batch_id), world.count(attempt), world.count(ledger_batch), world.waiting()) == before


def _totals(world, batch_id):
    ends = sorted((row.outcome, row.error_code or "", row.attempt_id is not None) for row in world.rows(job_outcome))
    kept = sorted((row.shard_index, row.outcome, row.cost_nano_usd) for row in world.rows(attempt))
    waiting = sorted((span.jobs_count, span.failures, span.attempt_number) for span in world.waiting())
    return world.counts(batch_id), ends, kept, waiting, world.verified().cost_nano_usd


_RAN = [
    a_job_ran(0),
    a_failure(1, ErrorCode.ENGINE_UNREACHABLE),  # whatever comes before it, it counts for nothing
    a_failure(2, ErrorCode.ENGINE_REFUSED),
    a_job_ran(3),
    a_job_ran(4, usage=Usage(3, 0, 3, 0, 77)),
]


@settings(max_examples=6, phases=GENERATE_ONLY)
@given(st.permutations(range(5)), st.sets(st.integers(1, 7)), st.lists(st.integers(0, 4), max_size=3), st.randoms())
def test_events_in_any_order_and_cut_say_the_same(make_world, order, cuts, repeated, random):
    totals = []
    for places, cut in ((range(5), {5}), ([*order, *repeated], cuts)):
        world = make_world()
        record = world.take_in(some_lines(5))
        (shard,) = world.claimed()
        events = [world.ran(shard, *piece) for piece in splits([_RAN[place] for place in places], cut) if piece]
        random.shuffle(events)
        for group in splits(events, {1}):
            world.record(*group)
        totals.append(_totals(world, record.batch_id))
        assert world.verified().faults == []
        assert world.shard(shard).state is ShardState.DONE
    assert totals[0] == totals[1]


@settings(max_examples=6, phases=GENERATE_ONLY)
@given(st.permutations(["event-0", "event-1", "returned"]))
def test_a_hand_back_that_overtakes_its_events_loses_and_doubles_nothing(make_world, order):
    world = make_world()
    record = world.take_in(some_lines(4))
    (shard,) = world.claimed()
    events = {
        "event-0": world.ran(shard, a_job_ran(0)),
        "event-1": world.ran(shard, a_job_ran(1)),
        "returned": world.returned(shard),
    }
    for name in order:
        world.record(events[name])
    world.run_all()
    counts = world.counts(record.batch_id)
    assert (counts.succeeded, counts.ended, world.count(job_outcome)) == (4, 4, 4)
    assert world.verified().faults == []


def _rejected(world, message):
    world.recorder.record([message])
    return world.count(attempt) == 0


def test_a_lane_speaks_for_its_own_shards_over_its_own_queue_only(make_world):
    world = make_world(a_lane("lane-a"), a_lane("lane-b"))
    world.take_in(some_lines(1))
    (shard,) = world.claimed()
    true = world.ran(shard, a_job_ran())
    claims_b = msgspec.structs.replace(true, lane="lane-b")
    assert shard.lane == "lane-a"
    assert _rejected(world, world.message(true, signed_by="lane-b"))
    assert _rejected(world, world.message(true, signed_by="lane-b", queue="lane.lane-b.events"))
    assert _rejected(world, world.message(claims_b))  # truly signed by b, over b's queue, naming a's shard
    assert _rejected(world, world.message(true, queue="lane.lane-b.events"))
    assert _rejected(world, world.message(true, queue="lane.other.events"))
    assert _rejected(world, world.message(msgspec.structs.replace(true, shard_id=b"?" * 16)))
    world.recorder.record([world.message(true)])
    assert world.count(attempt) == 1


def test_a_bad_signature_takes_no_good_event_with_it(world, claimed):
    forged, _ = a_signer("key-lane-a")
    event = world.ran(claimed, a_job_ran(0))
    sealed = seal(forged, Kind.EVENT, "broker", event, now_us=world.clock(), valid_us=SECOND_US)
    bad = msgspec.structs.replace(world.message(event), envelope=sealed)
    garbage = msgspec.structs.replace(bad, envelope=b"\x92\xc4\x02\xa1\xff\xc4\x00")
    world.recorder.record([garbage, bad, world.message(world.ran(claimed, a_job_ran(1)))])
    assert [row.shard_index for row in world.rows(attempt)] == [1]


@pytest.mark.parametrize("index", [4, 10**9])
def test_an_index_that_the_shard_does_not_have_is_ignored(world, claimed, index):
    world.record(world.ran(claimed, a_job_ran(index), a_job_ran(0)))
    assert [row.shard_index for row in world.rows(attempt)] == [0]


def test_a_failure_waits_again_and_at_the_limit_ends_its_job(world):
    record = world.take_in(some_lines(1))
    for failures in range(1, FAILURES_MAX + 1):
        (shard,) = world.claimed()
        assert (shard.spans[0].failures, shard.spans[0].attempt_number) == (failures - 1, failures)
        world.recorder._streaks.note_success("lane-a", "w1", 0)  # another's job, meanwhile
        world.record(world.ran(shard, a_failure()))
        if failures < FAILURES_MAX:
            (span,) = world.waiting()
            assert (span.failures, span.attempt_number, span.alone) == (failures, failures + 1, False)
            assert span.not_before_us == world.clock() + int(SECOND_US * 0.5 * 2 ** (failures - 1))
            assert world.dispatch() == []
            world.clock.now_us = span.not_before_us
    counts = world.counts(record.batch_id)
    assert (counts.failed, counts.attempts, counts.cost_nano_usd, counts.wasted_nano_usd) == (1, 4, 4_000, 4_000)
    assert world.waiting() == []
    (row,) = world.rows(result)
    assert (row.error_code, row.message) == (ErrorCode.ENGINE_FAILED, "it broke (lane lane-a)")
    story = world.read(explain, "t", row.job_id)
    assert [one.number for one in story.attempts] == [1, 2, 3, 4]
    assert (story.outcome, story.error_code, story.wasted_nano_usd) == ("failed", "engine_failed", 4_000)


def test_a_preempted_job_goes_on_at_once_uncounted(world, claimed):
    handed_back = a_job_ran(0, outcome=Outcome.PREEMPTED, error_code=ErrorCode.PREEMPTED, status_code=0, body=b"")
    world.record(world.ran(claimed, a_job_ran(1), handed_back), world.returned(claimed))
    assert world.shard(claimed).state is ShardState.RETURNED
    assert sum(span.jobs_count for span in world.waiting()) == 3
    assert {(span.failures, span.crashes, span.alone, span.not_before_us) for span in world.waiting()} == {
        (0, 0, False, 0)
    }
    world.run_all()
    assert world.counts(claimed.batch_id).succeeded == 4


def test_a_shard_returned_twice_or_after_its_end_is_no_news(world, claimed):
    world.record(world.returned(claimed), world.returned(claimed))
    assert world.waiting_jobs() == 4
    world.run_all()
    world.record(*(world.returned(shard) for shard in world.all_shards().values()))
    assert world.waiting_jobs() == 0


def test_a_cancelled_job_ends_as_cancelled(world, claimed):
    stopped = {"outcome": Outcome.CANCELLED, "error_code": ErrorCode.BATCH_CANCELLED, "status_code": 0, "body": b""}
    world.record(world.ran(claimed, *(a_job_ran(index, **stopped) for index in range(4))))
    counts = world.counts(claimed.batch_id)
    assert (counts.cancelled, counts.ended, counts.wasted_nano_usd) == (4, 4, 4_000)
    assert world.shard(claimed).state is ShardState.DONE


def test_a_failed_flush_keeps_nothing_and_can_be_repeated(world, claimed, monkeypatch):
    event = world.ran(claimed, a_job_ran(0))
    with monkeypatch.context() as broken:
        broken.setattr("broker.stages.recorder.shards.save_recorded", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            world.record(event)
    assert (world.count(attempt), world.counts(claimed.batch_id).attempts) == (0, 0)
    world.record(event)
    assert (world.count(attempt), world.verified().faults) == (1, [])


def test_the_story_of_a_job_can_be_told(world, claimed):
    (job_id,) = world.read(find_job, "t", "a2")
    assert job_id == claimed.job_id_at(2)
    assert world.read(where_is, "t", job_id) == "running on lane lane-a"
    assert world.read(explain, "t", b"?" * 16) is None
    assert world.read(explain, "t", job_id).attempts == []
    world.record(world.ran(claimed, a_job_ran(2)))
    story = world.read(explain, "t", job_id)
    assert (story.custom_id, story.line_number, story.outcome, story.cost_nano_usd) == ("a2", 3, "succeeded", 1_000)
    (one,) = story.attempts
    assert (one.why, one.plan_generation, one.worker) == ("the only lane allowed", 1, "w1")
    assert [candidate.lane for candidate in one.candidates] == ["lane-a"]
    assert world.verified().faults == []


def test_where_a_job_is_while_it_waits(world):
    world.take_in(some_lines(1))
    (job_id,) = world.read(find_job, "t", "a0")
    assert world.read(where_is, "t", job_id) == "waiting for a lane with room"
    assert isinstance(world.ran(world.claimed()[0], a_job_ran()), JobsRan)
