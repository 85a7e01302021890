"""One shard at a worker: real runner, real echo engine, real in-memory bus; the test holds the lease door."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b

import pytest

from broker.bus.envelope import Kind, seal
from broker.domain.errors import ErrorCode
from broker.domain.events import ShardReturned
from broker.domain.lane import EngineSettings
from broker.domain.outcome import Outcome
from broker.domain.shard import Bitmap, ClaimShard
from tests.unit.builders import NOW_US, SECOND_US, a_signer, an_order
from tests.unit.hiring import Broken, Door, Held, hiring, ran_jobs, returned, until
from workers.engine import EngineError
from workers.engines.echo import EchoEngine
from workers.lease import ClaimedOnce
from workers.outcomes import FLUSH_BYTES, EventOutlet


def test_a_shard_that_the_bus_brings_again_is_not_claimed_again_by_the_same_process():
    door = Door()
    once = ClaimedOnce(door)
    question = ClaimShard(b"s" * 16, "lane-a", "w1")
    assert once.claim(question).granted
    assert not once.claim(question).granted
    assert once.claim(ClaimShard(b"t" * 16, "lane-a", "w1")).granted
    assert len(door.claims) == 2


@pytest.fixture
def hire():
    with hiring() as make:
        yield make


def test_every_job_is_answered_metered_and_told(hire):
    worker, order = hire(), an_order(3)
    (event,) = worker.run(order)
    assert (event.shard_id, event.lane, event.worker_id, event.number) == (order.shard_id, "lane-a", "w1", 0)
    for index, job in ran_jobs([event]).items():
        sent = order.jobs[index]
        assert (job.outcome, job.status_code, job.error_code) == (Outcome.SUCCEEDED, 200, None)
        assert b"hello %d" % index in job.body
        assert (job.usage.input_tokens, job.usage.output_tokens) == (2, 2)
        assert job.request_digest == blake2b(sent.body, key=sent.salt, digest_size=32).digest()
        assert job.reply_digest == blake2b(job.body, key=sent.salt, digest_size=32).digest()
        assert (job.started_us, job.ended_us) == (NOW_US, NOW_US + job.run_us)
    assert (len(ran_jobs([event])), worker.door.claims[0].worker_id) == (3, "w1")


def test_a_claim_refused_runs_nothing(hire):
    worker = hire()
    worker.door.grants = False
    assert worker.run(an_order()) == []
    assert worker.deployment.meter.busy_us == 0
    assert worker.deployment.slots.take(0)  # its slot is free again


def test_what_is_not_ours_is_not_even_claimed(hire):
    worker = hire()
    other = a_signer("broker")[0]
    worker.run(an_order(), audience="lane-b")
    worker.run(an_order(lane="lane-b"), audience="lane-b")
    worker.run(an_order(), valid_us=-1)
    worker.runner.run(seal(other, Kind.SHARD, "lane-a", an_order(), now_us=NOW_US, valid_us=SECOND_US))
    worker.runner.run(b"garbage")
    assert (worker.door.claims, worker.events()) == ([], [])


def test_all_jobs_are_in_flight_at_once_and_share_the_accelerator(hire):
    engine = Held(20)
    worker = hire(engine)
    thread = worker.in_background(an_order(20))
    assert engine.all_there.wait(5)
    time.sleep(0.02)
    engine.let_go(worker.loop)
    thread.join(5)
    ran = ran_jobs(worker.events())
    assert len(ran) == 20
    assert sum(job.usage.accelerator_us for job in ran.values()) <= worker.deployment.meter.busy_us
    assert all(job.usage.accelerator_us < job.run_us / 2 for job in ran.values())


def test_renewals_name_what_still_runs(hire):
    class OneHeld(Held):
        async def run(self, request):
            return await (super().run(request) if b"hello 2" in request.body else EchoEngine().run(request))

    engine = OneHeld(1)
    worker = hire(engine)
    thread = worker.in_background(an_order(4))
    until(lambda: worker.door.renewals)
    engine.let_go(worker.loop)
    thread.join(5)
    renewal = worker.door.renewals[0]
    assert (Bitmap(renewal.running).missing(4), renewal.worker_id) == ([0, 1, 3], "w1")
    assert len(ran_jobs(worker.events())) == 4


@pytest.mark.parametrize(
    ("interrupted", "code"), [(False, ErrorCode.PREEMPTED), (True, ErrorCode.INTERRUPTED)], ids=["machine", "process"]
)
def test_a_stop_hands_everything_back_and_takes_nothing_more(hire, interrupted, code):
    engine = Held(3)
    worker = hire(engine)
    thread = worker.in_background(an_order(3))
    assert engine.all_there.wait(5)
    worker.runner.preempt(interrupted=interrupted)
    thread.join(5)
    events = worker.events()
    assert {(job.outcome, job.error_code) for job in ran_jobs(events).values()} == {(Outcome.PREEMPTED, code)}
    assert (len(ran_jobs(events)), returned(events)) == (3, [code])
    assert [event.number for event in events] == list(range(len(events)))
    # What comes after a preemption is claimed only to be handed back, at once; a process that just ends leaves it.
    after = worker.run(an_order(2))
    assert (ran_jobs(after), returned(after)) == ({}, [] if interrupted else [code])


def test_a_lost_lease_stops_the_work_and_hands_nothing_back(hire):
    engine = Held(2)
    worker = hire(engine)
    worker.door.renews = False
    thread = worker.in_background(an_order(2))
    thread.join(5)
    events = worker.events()
    assert {job.error_code for job in ran_jobs(events).values()} == {ErrorCode.INTERRUPTED}
    assert returned(events) == []


def test_silence_from_the_broker_stops_the_work_when_the_lease_ends_and_not_before(hire):
    worker, patient = hire(Held(1)), hire(Held(1))
    patient.door.lease_seconds = 30
    worker.door.fails = patient.door.fails = True
    goes_on = patient.in_background(an_order())
    until(patient.engine.all_there.is_set)
    began = time.monotonic()
    worker.in_background(an_order()).join(5)
    assert time.monotonic() - began >= 0.15
    # Every question but the last was asked while the lease still ran: none is asked once it is known to be over.
    over_at = worker.door.claimed_at + 0.15
    assert [at for at in worker.door.renewed_at[:-1] if at >= over_at] == []
    events = worker.events()
    assert ran_jobs(events)[0].error_code is ErrorCode.INTERRUPTED
    assert returned(events) == []
    # Who has a longer lease hears as little, and works on.
    patient.runner.renew_soon()
    until(lambda: patient.door.renewals)
    patient.engine.let_go(patient.loop)
    goes_on.join(5)
    assert ran_jobs(patient.events())[0].outcome is Outcome.SUCCEEDED


def test_a_cancelled_batch_stops_its_jobs(hire):
    engine = Held(2)
    worker = hire(engine)
    worker.door.cancels = True
    worker.in_background(an_order(2)).join(5)
    events = worker.events()
    assert {(job.outcome, job.error_code) for job in ran_jobs(events).values()} == {
        (Outcome.CANCELLED, ErrorCode.BATCH_CANCELLED)
    }
    assert returned(events) == [ErrorCode.BATCH_CANCELLED]


def test_a_batch_cancelled_before_the_claim_runs_nothing(hire):
    engine = Held(1)
    worker = hire(engine)
    worker.door.cancels_claim = True
    events = worker.run(an_order(2))
    assert engine.waiting == 0
    assert returned(events) == [ErrorCode.BATCH_CANCELLED]


def test_an_engines_error_is_an_outcome_with_its_code(hire):
    worker = hire(EchoEngine(fail_every=2, status=429))
    ran = ran_jobs(worker.run(an_order(4)))
    failed = [job for job in ran.values() if job.outcome is Outcome.FAILED]
    assert len(failed) == 2
    assert {(job.error_code, job.status_code, job.message) for job in failed} == {
        (ErrorCode.ENGINE_BUSY, 429, "the engine answered HTTP 429: the echo engine was told to fail server_error")
    }
    assert all(b"told to fail" in job.body for job in failed)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineError(ErrorCode.ENGINE_DIED, "gone"), ErrorCode.ENGINE_DIED),
        (ZeroDivisionError("a bug with a secret in it"), ErrorCode.ENGINE_INVALID_REPLY),
    ],
    ids=["engine", "driver"],
)
def test_no_error_silences_a_job(hire, error, code):
    ran = ran_jobs(hire(Broken(error)).run(an_order(2)))
    assert [(job.outcome, job.error_code) for _, job in sorted(ran.items())] == [(Outcome.FAILED, code)] * 2
    assert not any("secret" in job.message for job in ran.values())


def test_a_long_shard_is_told_in_pieces(hire):
    worker = hire()
    events = worker.run(an_order(40, words="x" * 8_000))
    sizes = [sum(len(job.body) for job in event.jobs) for event in events]
    assert len(events) >= 5
    assert all(size < FLUSH_BYTES + 9_000 for size in sizes)
    assert sorted(event.number for event in events) == list(range(len(events)))
    assert len(ran_jobs(events)) == sum(len(event.jobs) for event in events) == 40


def test_events_are_published_until_the_bus_has_them(hire, monkeypatch):
    monkeypatch.setattr("workers.outcomes._RETRY_SECONDS", 0.01)
    worker = hire()
    publish, failures = worker.publisher.publish_events, iter([OSError("away"), OSError("away")])

    def unreliable(queue, envelopes):
        for failure in failures:
            raise failure
        publish(queue, envelopes)

    monkeypatch.setattr(worker.publisher, "publish_events", unreliable)
    assert len(ran_jobs(worker.run(an_order(2)))) == 2


def test_shards_wait_in_line_while_others_have_jobs_that_have_not_begun(hire):
    engine = Held(4)
    settings = EngineSettings(driver="echo", models=("m",), concurrency=4)
    worker = hire(engine, slots=2, engine=settings)
    threads = [worker.in_background(an_order(4))]
    assert engine.all_there.wait(5)  # all its jobs have begun, so it has no slot any more
    threads += [worker.in_background(an_order(4)) for _ in range(3)]
    until(lambda: len(worker.door.claims) == 3)
    worker.settle()
    assert (engine.waiting, len(worker.door.claims)) == (4, 3)
    engine.let_go(worker.loop)
    for thread in threads:
        thread.join(5)
    assert sum(len(event.jobs) for event in worker.events()) == 16


class Hanging:
    """A bus that confirms nothing until the test lets it."""

    def __init__(self):
        self.called, self.goes_on = threading.Event(), threading.Event()

    def publish_events(self, queue, envelopes):
        self.called.set()
        assert self.goes_on.wait(30)


class FirstAtOnce(Held):
    """The first job ends at once, the others when the test lets them."""

    async def run(self, request):
        self._gate = self._gate or asyncio.Event()
        self.waiting += 1
        if self.waiting > 1:
            await self._gate.wait()
        return await EchoEngine().run(request)


def test_a_bus_that_hangs_delays_no_renewal(hire):
    engine, bus = FirstAtOnce(0), Hanging()
    worker = hire(engine)
    worker.door.lease_seconds = 0.9
    worker.deployment.outlet = EventOutlet(bus, worker.lane.events_queue)
    few = ThreadPoolExecutor(1)  # as where so many publishes hang as the loop has threads
    worker.loop.call_soon_threadsafe(worker.loop.set_default_executor, few)
    thread = worker.in_background(an_order(2))
    try:
        assert bus.called.wait(5)
        before = len(worker.door.renewals)
        until(lambda: len(worker.door.renewals) >= before + 4)  # longer than a lease
    finally:
        bus.goes_on.set()
        engine.let_go(worker.loop)
        thread.join(5)
    assert not thread.is_alive()
    assert few.submit(lambda: True).result(5)


def test_a_cancel_that_comes_while_a_stopped_shard_is_handed_back_adds_nothing(hire):
    engine = Held(1)
    worker = hire(engine, engine=EngineSettings(driver="echo", models=("m",), concurrency=1))
    renewing, answer, publishing, confirm = (threading.Event() for _ in range(4))
    renew, publish = worker.door.renew, worker.publisher.publish_events

    def slow_renew(question):
        renewing.set()
        answer.wait(5)
        return renew(question)

    def slow_publish(queue, envelopes):
        publishing.set()
        confirm.wait(5)
        publish(queue, envelopes)

    worker.door.renew, worker.publisher.publish_events = slow_renew, slow_publish
    thread = worker.in_background(an_order(3))
    assert engine.all_there.wait(5)
    assert renewing.wait(5)
    worker.runner.preempt()
    assert publishing.wait(5)
    worker.door.cancelled_jobs = Bitmap.of([1, 2]).to_bytes()
    answer.set()
    until(lambda: worker.door.renewals)
    time.sleep(0.3)
    confirm.set()
    thread.join(5)
    time.sleep(0.3)
    events = worker.events()
    assert list(ran_jobs(events)) == [0]  # the others never began, and went back
    assert isinstance(events[-1], ShardReturned)
