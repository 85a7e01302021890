"""Planner, dispatcher, relay and the lease door, on a real database."""

from __future__ import annotations

import time
import uuid

import msgspec
import pytest

from broker.bus.drivers.memory import MemoryDriver, MemoryOptions
from broker.bus.envelope import open_shard
from broker.bus.inbox import Inbox
from broker.bus.publisher import Publisher
from broker.database import jobs, plans, shards
from broker.database.tables import assignment, outbox, payload, plan, ready, shard
from broker.domain.errors import ErrorCode
from broker.domain.ids import id_at, ids_of_span
from broker.domain.job import Constraints
from broker.domain.lane import EngineSettings, Market, Supply
from broker.domain.outcome import Outcome
from broker.domain.shard import ShardSpan, ShardState
from broker.signing import KeyRing, KeyRole, PublicKey
from broker.stages.dispatcher import CLAIM_SECONDS
from broker.stages.relay import Relay
from tests.unit.builders import (
    LEASE_SECONDS,
    MODEL,
    ONE_PLACE,
    SECOND_US,
    a_failure,
    a_job_ran,
    a_lane,
    a_line,
    a_price,
    a_signer,
    some_lines,
)

DEAR = a_lane("dear", price=a_price(7_200_000_000), slots=2, engine=ONE_PLACE)
CHEAP = a_lane("cheap", engine=ONE_PLACE)
COST = 10_000
"""What one job on CHEAP is expected to cost: a hundredth of a second at 3.60 dollars an hour, in nano-dollars."""


def _jobs(records):
    return [
        job for record in records for span in record.spans for job in ids_of_span(span.first_job_id, span.jobs_count)
    ]


def test_a_plan_is_made_once_and_kept_with_its_reasons(make_world):
    world = make_world(CHEAP, DEAR)
    world.take_in(some_lines(3), constraints=Constraints(lanes=("dear",)))
    world.planner.step()
    world.planner.step()
    (kept,) = world.read(plans.load_later, 0).values()
    assert [one.lane for one in kept.plan.candidates] == ["dear"]
    assert [(one.lane, one.filter) for one in kept.plan.removed] == [("cheap", "lanes: not among dear")]
    assert (world.count(plan), world.count(assignment)) == (1, 1)
    world.take_in(some_lines(1))
    world.planner.step()
    assert world.read(plans.current_plan)[0] == 2
    assert len(world.read(plans.load_later, 1)) == 1  # what holds on is not written again
    assert len(world.read(plans.load_waiting)) == len(world.read(plans.load_later, 0)) == 2


def test_the_cheapest_lane_with_room_comes_first_and_none_gets_more_than_it_has_room_for(make_world):
    world = make_world(
        msgspec.structs.replace(CHEAP, shard_jobs_max=2), msgspec.structs.replace(DEAR, shard_jobs_max=3)
    )
    world.take_in(some_lines(30))
    written = world.dispatch()
    assert [(record.lane, record.jobs_count) for record in written] == [("cheap", 2)] * 2 + [("dear", 3)] * 4
    assert written[0].reason == "the cheapest of 2 allowed lanes"
    assert written[2].reason == "the cheapest allowed lane with room; cheap had none"
    assert world.dispatch() == []
    assert world.claim(written[0]).granted
    assert world.dispatch() == []  # running still takes its place
    world.record(world.ran(written[0], a_job_ran(0), a_job_ran(1)))
    assert [record.lane for record in world.dispatch()] == ["cheap"]
    assert world.waiting_jobs() == 30 - 2 * 3 - 3 * 4


def test_every_job_is_dispatched_once_in_the_order_of_its_ids(make_world):
    world = make_world(msgspec.structs.replace(CHEAP, shard_jobs_max=4, slots=5))
    world.take_in(some_lines(18))
    before = [job for span in world.waiting() for job in ids_of_span(span.first_job_id, span.jobs_count)]
    written = world.dispatch()
    assert _jobs(written) == before
    assert world.count(ready) == 0
    assert [record.jobs_count for record in written] == [4, 4, 4, 4, 2]
    for record in written:
        assert [record.job_id_at(index) for index in range(record.jobs_count)] == _jobs([record])


def test_the_earliest_deadline_goes_first(make_world):
    world = make_world(msgspec.structs.replace(CHEAP, shard_jobs_max=1))
    late = world.take_in(some_lines(3), window_seconds=80_000)
    soon = world.take_in(some_lines(1, "s"), window_seconds=1_000)
    assert [record.batch_id for record in world.dispatch()] == [soon.batch_id, late.batch_id, late.batch_id]


def test_a_constrained_group_never_leaves_its_lanes(make_world):
    world = make_world(CHEAP, DEAR)
    world.take_in(some_lines(1_000), constraints=Constraints(lanes=("dear",)))
    assert {record.lane for record in world.dispatch()} == {"dear"}
    nowhere = world.take_in(some_lines(1, "x"), constraints=Constraints(regions=("mars",)))
    assert nowhere.batch_id not in {record.batch_id for record in world.dispatch()}


def test_jobs_go_only_where_a_message_can_carry_them(make_world):
    small = a_lane("cheap", message_bytes_max=64_000)
    world = make_world(small, DEAR)
    world.take_in(some_lines(1))
    large = {"messages": [{"role": "user", "content": "y" * 70_000}]}
    world.take_in(a_line("large", body=large) + b"\n", window_seconds=60)
    assert {(record.lane, record.jobs_count) for record in world.dispatch()} == {("cheap", 1), ("dear", 1)}


def test_a_shard_has_one_batch(world):
    first, second = world.take_in(some_lines(2)), world.take_in(some_lines(2))
    written = world.dispatch()
    assert [(record.batch_id, record.jobs_count) for record in written] == [(first.batch_id, 2), (second.batch_id, 2)]


@pytest.mark.parametrize("jobs_covered", [0, 1, 7])
def test_holds_never_exceed_the_budget(world, jobs_covered):
    record = world.take_in(some_lines(20), max_cost_nano_usd=COST * jobs_covered + COST - 1)
    written = world.dispatch()
    assert len(_jobs(written)) == jobs_covered
    assert world.held(record.batch_id) == jobs_covered * COST
    assert world.dispatch() == []


def test_what_was_not_spent_of_a_hold_is_free_again_and_what_was_spent_is_not(world):
    record = world.take_in(some_lines(40), max_cost_nano_usd=10 * COST)
    (first,) = world.claimed()
    world.record(world.ran(first, *(a_job_ran(index) for index in range(10))))
    spent = world.counts(record.batch_id).cost_nano_usd
    assert spent == 10 * COST // 10
    (second,) = world.dispatch()
    assert second.jobs_count == 18  # jobs turned out to be cheaper than believed
    assert spent + world.held(record.batch_id) <= 10 * COST


def test_a_spent_budget_does_not_hold_up_the_next_batch(world):
    world.take_in(some_lines(3), max_cost_nano_usd=1)
    free = world.take_in(some_lines(3))
    assert [record.batch_id for record in world.dispatch()] == [free.batch_id]


def test_nothing_is_dispatched_before_its_time_or_after_its_deadline(world):
    world.take_in(some_lines(1), window_seconds=100)
    world.planner.step()
    world.clock.advance(100)
    assert world.dispatch() == []
    assert world.waiting_jobs() == 1


def test_the_next_due_time_bounds_the_wait(world):
    assert world.dispatcher.seconds_until_due(1.0) == 1.0
    world.take_in(some_lines(1))
    (one,) = world.claimed()
    world.record(world.ran(one, a_failure()))
    assert world.dispatcher.seconds_until_due(10.0) == pytest.approx(0.5)
    world.clock.advance(0.5)
    assert world.dispatch() == []  # its lane rests for longer
    assert world.dispatcher.seconds_until_due(10.0) == pytest.approx(0.5)
    world.clock.advance(0.5)
    assert len(world.dispatch()) == 1


# --------------------------------------------------------------------------------------------------------- relay


@pytest.fixture
def bus():
    url = f"lanemem://relay-{uuid.uuid4().hex}"
    publisher = Publisher(url)
    yield url, publisher
    publisher.close()


def test_a_committed_shard_reaches_its_lanes_queue_and_is_forgotten_here(world, bus):
    url, publisher = bus
    signer, private = a_signer("broker")
    relay = Relay(world.database, world.lanes, {"lane-a": publisher}, signer, world.clock)
    world.take_in(some_lines(3))
    (written,) = world.dispatch()
    sealed = []
    relay._publishers = {"lane-a": _Tee(publisher, sealed)}
    assert relay.step() == 1
    ring = KeyRing({"broker": PublicKey(KeyRole.BROKER, "broker", private.public_key())})
    order = open_shard(ring, sealed[0], world.clock()).body
    assert (order.shard_id, order.lane, order.tenant_id, order.beside) == (written.shard_id, "lane-a", "t", False)
    stored = {row.job_id: (row.body, row.salt) for row in world.rows(payload)}
    assert [(job.job_id, (job.body, job.salt)) for job in order.jobs] == [
        (job, stored[job]) for job in _jobs([written])
    ]
    assert MemoryDriver(url.removeprefix("lanemem://"), MemoryOptions()).size("lane.lane-a.shards") == 1
    assert (world.count(outbox), relay.step()) == (0, 0)


class _Tee:
    def __init__(self, publisher, sealed):
        self._publisher, self._sealed = publisher, sealed

    def publish_shards(self, queue, envelopes):
        self._publisher.publish_shards(queue, envelopes)
        self._sealed += envelopes


def test_what_the_bus_did_not_confirm_is_kept_and_what_was_taken_back_is_not_sent(world, bus, monkeypatch):
    _, publisher = bus
    relay = Relay(world.database, world.lanes, {"lane-a": publisher}, a_signer()[0], world.clock)
    world.take_in(some_lines(1))
    (written,) = world.dispatch()
    publisher.close()
    assert relay.step() == 1
    assert world.count(outbox) == 1
    assert relay.step() == 0  # its lane is left alone for a moment, and holds up no other
    world.database.write(
        lambda connection: shards.close(connection, written.shard_id, ShardState.TAKEN_BACK, world.clock())
    )
    later = time.monotonic() + 2
    monkeypatch.setattr("time.monotonic", lambda: later)
    assert relay.step() == 1  # nothing left to publish, so the closed bus is not asked
    assert world.count(outbox) == 0


@pytest.mark.parametrize("run_bytes_max", [0, 500, 4_000_000])
def test_each_span_gets_its_own_jobs_in_order_however_they_are_read(world, monkeypatch, run_bytes_max):
    monkeypatch.setattr("broker.database.jobs._RUN_BYTES_MAX", run_bytes_max)
    world.take_in(some_lines(9))
    world.take_in(some_lines(4, "b"))
    nine, four = (span.first_job_id for span in world.waiting())
    cuts = [(nine, 4, 3), (four, 0, 4), (nine, 0, 2), (nine, 2, 2), (nine, 8, 1), (nine, 3, 5)]
    spans = [ShardSpan(0, id_at(first, at), count, 1, 0, 0, False, 100, 0) for first, at, count in cuts]
    found = world.read(jobs.load_shard_jobs, spans)
    stored = {row.job_id: (row.job_id, row.body, row.salt) for row in world.rows(payload)}
    assert {span: [(job.job_id, job.body, job.salt) for job in found[span]] for span in spans} == {
        span: [stored[job_id] for job_id in ids_of_span(span.first_job_id, span.jobs_count)] for span in spans
    }
    with pytest.raises(LookupError, match="3 of 4 payloads are gone"):
        world.read(jobs.load_shard_jobs, [msgspec.structs.replace(spans[4], jobs_count=4)])


def test_an_inbox_hears_only_its_own_queue(bus):
    url, publisher = bus
    inbox = Inbox(url, ["lane.other.events"], prefetch=10)
    publisher.publish_events("lane.lane-a.events", [b"x"])
    assert inbox.receive(1, 0.01) == []
    inbox.close()


# ------------------------------------------------------------------------------------------------------- leasing


def test_a_shard_is_claimed_once_by_a_worker_of_its_lane(world):
    world.take_in(some_lines(1))
    (written,) = world.dispatch()
    assert not world.claim(msgspec.structs.replace(written, lane="other")).granted
    answer = world.claim(written, "w1")
    assert (answer.granted, answer.lease_seconds, answer.cancelled) == (True, LEASE_SECONDS, False)
    assert not world.claim(written, "w2").granted
    assert world.claim(written, "w1").granted  # whose first answer may have got lost
    kept = world.shard(written)
    assert (kept.state, kept.worker_id) == (ShardState.RUNNING, "w1")
    assert kept.lease_until_us == world.clock() + LEASE_SECONDS * SECOND_US
    assert not world.claim(msgspec.structs.replace(written, shard_id=b"?" * 16)).granted


def test_a_renewal_extends_the_lease_of_its_holder_alone(world):
    world.take_in(some_lines(2))
    (written,) = world.claimed()
    world.clock.advance(10)
    assert world.renew(written, [1]).granted
    kept = world.shard(written)
    assert (kept.lease_until_us, kept.running) == (world.clock() + LEASE_SECONDS * SECOND_US, b"\x02")
    assert not world.renew(written, [1], worker="w2").granted


def test_after_a_take_back_neither_claim_nor_renewal_is_granted(world):
    world.take_in(some_lines(1))
    (written,) = world.claimed()
    assert world.fall_silent() == 1
    assert not world.renew(written, [0]).granted
    assert not world.claim(written, "w2").granted


def test_a_shard_may_lie_for_its_time_and_no_longer(world):
    world.take_in(some_lines(1))
    (written,) = world.dispatch()
    expected_seconds = 1 / 100 + 2 * 10 + CLAIM_SECONDS
    assert written.claim_by_us == world.clock() + int(expected_seconds * SECOND_US)
    assert world.count(shard) == 1


# ---------------------------------------------------------------------------------------------------- live placement


def test_a_lane_learned_to_be_slow_comes_after_the_dearer_one_and_gets_smaller_shards(make_world):
    world = make_world(a_lane("cheap", slots=1), a_lane("dear", price=a_price(5_400_000_000)))
    world.take_in(some_lines(300))
    first = world.dispatch()
    assert first[0].lane == "cheap"
    assert world.claim(first[0]).granted
    world.clock.advance(1)
    slow = [a_job_ran(index, run_us=64 * 100_000) for index in range(60)]  # a tenth of a second each, 64 at once
    world.record(world.ran(first[0], *slow))
    world.clock.advance(1)
    world.take_in(some_lines(300, "b"))
    for shard_now in world.dispatch():
        assert shard_now.lane == "dear" or shard_now.jobs_count < 300
    plan_now = next(iter(world.read(plans.load_waiting).values()), None) or world.read(plans.load_later, 1).popitem()[1]
    assert [one.lane for one in plan_now.plan.candidates] == ["dear", "cheap"]
    assert world.read(plans.lane_plans)["cheap"].speeds["m"].is_slower is False  # there is no usual yet


def test_a_silent_lane_gets_no_more_until_it_is_heard_of(make_world):
    world = make_world(a_lane("cheap"), DEAR)
    world.take_in(some_lines(2), window_seconds=600)
    (shard_now,) = world.dispatch()
    world.clock.advance(2)
    world.planner.step()
    assert world.read(plans.lane_plans)["cheap"].trouble is None
    world.clock.advance(3)
    world.take_in(some_lines(2, "b"), window_seconds=700)
    assert [record.lane for record in world.dispatch()] == ["dear"]
    assert world.read(plans.lane_plans)["cheap"].trouble == ("silent: it has work, and nothing was heard of it for 5 s")
    assert world.claim(shard_now).granted
    world.record(world.ran(shard_now, a_job_ran(0), a_job_ran(1)))
    world.take_in(some_lines(2, "c"), window_seconds=800)
    assert [record.lane for record in world.dispatch()] == ["cheap"]


def test_what_will_be_late_is_known_early_and_is_no_longer_said_once_it_is_not(make_world):
    world = make_world(a_lane(jobs_per_second=1.0, shard_jobs_max=1))
    batch = world.take_in(some_lines(100), window_seconds=30)
    world.dispatch()
    late_us = world.read(plans.late_batch_us, "t", batch.batch_id)
    assert late_us is not None
    assert late_us > batch.deadline_us
    (span, *_) = world.waiting()
    assert world.read(plans.late_job_us, "t", span.first_job_id) == late_us
    calm = world.take_in(some_lines(3, "b"), window_seconds=3_600)
    world.clock.advance(2)
    world.dispatch()
    assert world.read(plans.late_batch_us, "t", calm.batch_id) is None


def test_tenants_take_turns_and_what_is_urgent_goes_before(make_world):
    engine = EngineSettings(driver="echo", models=(MODEL,), concurrency=8)
    world = make_world(a_lane(shard_jobs_max=10, slots=4, engine=engine))
    world.take_in(some_lines(100), tenant_id="big", window_seconds=90_000)
    world.take_in(some_lines(20, "s"), tenant_id="small", window_seconds=80_000)
    world.take_in(some_lines(10, "u"), tenant_id="big", window_seconds=60)
    written = world.dispatch()
    assert [record.tenant_id for record in written] == ["big", "small", "small", "big", "big", "big", "big", "big"]
    assert written[0].spans[0].deadline_us == min(record.spans[0].deadline_us for record in written)


def test_preempted_three_times_a_job_stays_on_machines_that_are_not_taken_away(make_world):
    steady = a_lane("steady", market=Market.ON_DEMAND, price=a_price(9_000_000_000))
    world = make_world(CHEAP, steady)
    world.take_in(some_lines(1))
    for _ in range(3):
        (one,) = world.claimed()
        assert one.lane == "cheap"
        preempted = a_failure(0, ErrorCode.PREEMPTED, outcome=Outcome.PREEMPTED)
        world.record(world.ran(one, preempted), world.returned(one))
    (one,) = world.dispatch()
    assert (one.lane, one.reason) == ("steady", "the only lane allowed, kept off spot after 3 preemptions")


def test_an_elastic_lane_is_used_as_far_as_the_plan_wants_it(make_world):
    lane = a_lane(supply=Supply.ELASTIC, quota=4, slots=1, jobs_per_second=1.0, shard_jobs_max=1, engine=ONE_PLACE)
    world = make_world(lane)
    world.take_in(some_lines(3))
    assert world.dispatch() == []  # three seconds of work, due in a day: not worth an instance yet
    assert world.read(plans.lane_plans)["lane-a"].desired == 0
    world.take_in(some_lines(20, "u"), window_seconds=30)
    assert len(world.dispatch()) == 3  # a place, and two behind it
    assert world.read(plans.lane_plans)["lane-a"].desired >= 1
