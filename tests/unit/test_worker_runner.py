"""One shard at a worker: real runner, real echo engine, real in-memory bus; the test holds the lease door."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from hashlib import blake2b

import pytest

from broker.bus.envelope import KeyRing, KeyRole, Kind, PublicKey, open_event
from broker.bus.inbox import Inbox
from broker.bus.publisher import Publisher
from broker.domain.errors import ErrorCode
from broker.domain.events import JobsRan, ShardReturned
from broker.domain.lane import EngineSettings
from broker.domain.outcome import Outcome
from broker.domain.shard import Bitmap, ClaimAnswer, ClaimShard, RenewAnswer
from tests.unit.builders import NOW_US, SECOND_US, FixedClock, a_lane, a_signer, an_order
from workers.engine import EngineError
from workers.engines.echo import EchoEngine
from workers.lease import ClaimedOnce
from workers.outcomes import FLUSH_BYTES
from workers.runner import Deployment, ShardRunner


def test_a_shard_that_the_bus_brings_again_is_not_claimed_again_by_the_same_process():
    door = Door()
    once = ClaimedOnce(door)
    question = ClaimShard(b"s" * 16, "lane-a", "w1")
    assert once.claim(question).granted
    assert not once.claim(question).granted
    assert once.claim(ClaimShard(b"t" * 16, "lane-a", "w1")).granted
    assert len(door.claims) == 2


class Door:
    """Answers as the test tells it to."""

    def __init__(self):
        self.grants, self.renews, self.cancels_claim, self.cancels, self.fails = True, True, False, False, False
        self.lease_seconds, self.cancelled_jobs = 0.15, b""
        self.claims, self.renewals = [], []

    def claim(self, question):
        self.claims.append(question)
        return ClaimAnswer(self.grants, self.lease_seconds, self.cancels_claim, self.cancelled_jobs)

    def renew(self, question):
        self.renewals.append(question)
        if self.fails:
            raise OSError("the broker is away")
        return RenewAnswer(self.renews, self.lease_seconds, self.cancels, self.cancelled_jobs)


class Worker:
    """A runner for `lane-a` on an engine, and what comes out of it."""

    def __init__(self, engine, /, **lane):
        self.url = f"lanemem://worker-{uuid.uuid4().hex}"
        self.lane, self.engine, self.door, self.clock = a_lane(**lane), engine, Door(), FixedClock()
        self.broker, broker_private = a_signer("broker")
        lane_signer, lane_private = a_signer("lane")
        self.ring = KeyRing(
            {"broker": PublicKey(KeyRole.BROKER, "broker", broker_private.public_key()),
             "lane": PublicKey(KeyRole.LANE, "lane-a", lane_private.public_key())}
        )  # fmt: skip
        self.publisher = Publisher(self.url)
        self.inbox = Inbox(self.url, [self.lane.events_queue], prefetch=1_000)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.deployment = Deployment(self.lane, engine, self.publisher, lane_signer)
        self.runner = ShardRunner(
            worker_id="w1", deployments={"lane-a": self.deployment}, ring=self.ring, door=self.door, loop=self.loop,
            clock=self.clock,
        )  # fmt: skip

    def seal(self, order, audience="lane-a", valid_us=SECOND_US):
        return self.broker.seal(Kind.SHARD, audience, order, now_us=NOW_US, valid_us=valid_us)

    def run(self, order, **sealing):
        self.runner.run(self.seal(order, **sealing))
        return self.events()

    def in_background(self, order):
        thread = threading.Thread(target=self.runner.run, args=[self.seal(order)])
        thread.start()
        return thread

    def events(self):
        found = []
        while deliveries := self.inbox.receive(1_000, 0.02):
            found += [open_event(self.ring, one.envelope, NOW_US).body for one in deliveries]
        return found

    def close(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
        self.inbox.close()
        self.publisher.close()


@pytest.fixture
def hire():
    hired = []

    def make(engine=None, /, **lane):
        hired.append(Worker(engine or EchoEngine(), **lane))
        return hired[-1]

    yield make
    for worker in hired:
        worker.close()


class Held:
    """Each request waits until the test lets it go; a driver of the engine port."""

    def __init__(self, count):
        self.waiting, self.all_there, self._count = 0, threading.Event(), count
        self._gate = None

    async def run(self, request):
        self._gate = self._gate or asyncio.Event()
        self.waiting += 1
        if self.waiting == self._count:
            self.all_there.set()
        await self._gate.wait()
        return await EchoEngine().run(request)

    def let_go(self, loop):
        loop.call_soon_threadsafe(self._gate.set)


class Broken:
    async def run(self, request):
        raise self.error

    def __init__(self, error):
        self.error = error


def _ran(events):
    return {job.index: job for event in events if isinstance(event, JobsRan) for job in event.jobs}


def _returned(events):
    return [event.reason for event in events if isinstance(event, ShardReturned)]


def _until(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_every_job_is_answered_metered_and_told(hire):
    worker, order = hire(), an_order(3)
    (event,) = worker.run(order)
    assert (event.shard_id, event.lane, event.worker_id, event.number) == (order.shard_id, "lane-a", "w1", 0)
    for index, job in _ran([event]).items():
        sent = order.jobs[index]
        assert (job.outcome, job.status_code, job.error_code) == (Outcome.SUCCEEDED, 200, None)
        assert b"hello %d" % index in job.body
        assert (job.usage.input_tokens, job.usage.output_tokens) == (2, 2)
        assert job.request_digest == blake2b(sent.body, key=sent.salt, digest_size=32).digest()
        assert job.reply_digest == blake2b(job.body, key=sent.salt, digest_size=32).digest()
        assert (job.started_us, job.ended_us) == (NOW_US, NOW_US + job.run_us)
    assert (len(_ran([event])), worker.door.claims[0].worker_id) == (3, "w1")


def test_a_claim_refused_runs_nothing(hire):
    worker = hire()
    worker.door.grants = False
    assert worker.run(an_order()) == []
    assert worker.deployment.meter.busy_us == 0
    assert worker.deployment.slots.acquire(blocking=False)  # its place is free again


def test_what_is_not_ours_is_not_even_claimed(hire):
    worker = hire()
    other = a_signer("broker")[0]
    worker.run(an_order(), audience="lane-b")
    worker.run(an_order(lane="lane-b"), audience="lane-b")
    worker.run(an_order(), valid_us=-1)
    worker.runner.run(other.seal(Kind.SHARD, "lane-a", an_order(), now_us=NOW_US, valid_us=SECOND_US))
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
    ran = _ran(worker.events())
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
    _until(lambda: worker.door.renewals)
    engine.let_go(worker.loop)
    thread.join(5)
    renewal = worker.door.renewals[0]
    assert (Bitmap(renewal.running).missing(4), renewal.worker_id) == ([0, 1, 3], "w1")
    assert len(_ran(worker.events())) == 4


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
    assert {(job.outcome, job.error_code) for job in _ran(events).values()} == {(Outcome.PREEMPTED, code)}
    assert (len(_ran(events)), _returned(events)) == (3, [code])
    assert [event.number for event in events] == list(range(len(events)))
    # What comes after a preemption is claimed only to be handed back, at once; a process that just ends leaves it.
    after = worker.run(an_order(2))
    assert (_ran(after), _returned(after)) == ({}, [] if interrupted else [code])


def test_a_lost_lease_stops_the_work_and_hands_nothing_back(hire):
    engine = Held(2)
    worker = hire(engine)
    worker.door.renews = False
    thread = worker.in_background(an_order(2))
    thread.join(5)
    events = worker.events()
    assert {job.error_code for job in _ran(events).values()} == {ErrorCode.INTERRUPTED}
    assert _returned(events) == []


def test_silence_from_the_broker_stops_the_work_when_the_lease_ends_and_not_before(hire):
    engine = Held(1)
    worker = hire(engine)
    worker.door.fails = True
    began = time.monotonic()
    worker.in_background(an_order()).join(5)
    assert 0.15 <= time.monotonic() - began < 2
    assert len(worker.door.renewals) >= 3
    assert _returned(worker.events()) == []


def test_a_cancelled_batch_stops_its_jobs(hire):
    engine = Held(2)
    worker = hire(engine)
    worker.door.cancels = True
    worker.in_background(an_order(2)).join(5)
    events = worker.events()
    assert {(job.outcome, job.error_code) for job in _ran(events).values()} == {
        (Outcome.CANCELLED, ErrorCode.BATCH_CANCELLED)
    }
    assert _returned(events) == [ErrorCode.BATCH_CANCELLED]


def test_a_batch_cancelled_before_the_claim_runs_nothing(hire):
    engine = Held(1)
    worker = hire(engine)
    worker.door.cancels_claim = True
    events = worker.run(an_order(2))
    assert engine.waiting == 0
    assert _returned(events) == [ErrorCode.BATCH_CANCELLED]


def test_an_engines_error_is_an_outcome_with_its_code(hire):
    worker = hire(EchoEngine(fail_every=2, status=429))
    ran = _ran(worker.run(an_order(4)))
    failed = [job for job in ran.values() if job.outcome is Outcome.FAILED]
    assert len(failed) == 2
    assert {(job.error_code, job.status_code, job.message) for job in failed} == {
        (ErrorCode.ENGINE_BUSY, 429, "the engine answered HTTP 429")
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
    ran = _ran(hire(Broken(error)).run(an_order(2)))
    assert [(job.outcome, job.error_code) for _, job in sorted(ran.items())] == [(Outcome.FAILED, code)] * 2
    assert not any("secret" in job.message for job in ran.values())


def test_a_long_shard_is_told_in_pieces(hire):
    worker = hire()
    events = worker.run(an_order(40, words="x" * 8_000))
    sizes = [sum(len(job.body) for job in event.jobs) for event in events]
    assert len(events) >= 5
    assert all(size < FLUSH_BYTES + 9_000 for size in sizes)
    assert sorted(event.number for event in events) == list(range(len(events)))
    assert len(_ran(events)) == sum(len(event.jobs) for event in events) == 40


def test_events_are_published_until_the_bus_has_them(hire, monkeypatch):
    monkeypatch.setattr("workers.outcomes._RETRY_SECONDS", 0.01)
    worker = hire()
    publish, failures = worker.publisher.publish_events, iter([OSError("away"), OSError("away")])

    def unreliable(queue, envelopes):
        for failure in failures:
            raise failure
        publish(queue, envelopes)

    monkeypatch.setattr(worker.publisher, "publish_events", unreliable)
    assert len(_ran(worker.run(an_order(2)))) == 2


def test_a_lane_runs_as_many_shards_as_it_has_places(hire):
    engine = Held(2)
    worker = hire(engine, slots=2)
    threads = [worker.in_background(an_order()) for _ in range(3)]
    assert engine.all_there.wait(5)
    time.sleep(0.03)
    assert (engine.waiting, len(worker.door.claims)) == (2, 2)
    engine.let_go(worker.loop)
    for thread in threads:
        thread.join(5)
    assert len(worker.events()) == 3


class Tracked:
    """Each request waits until the test ends it by its place in the shard; a driver of the engine port."""

    def __init__(self):
        self.inside, self.ended = set(), set()
        self.inside_count = self.most_inside = 0  # two shards may have jobs of the same number inside

    async def run(self, request):
        number = int(request.body.split(b"hello ")[1].split(b'"')[0])
        self.inside.add(number)
        self.inside_count += 1
        self.most_inside = max(self.most_inside, self.inside_count)
        try:
            async with asyncio.timeout(5):
                while number not in self.ended:  # noqa: ASYNC110 (the test sets it from its own thread)
                    await asyncio.sleep(0.001)
        finally:
            self.inside.discard(number)
            self.inside_count -= 1
        return await EchoEngine().run(request)


def _crowded(hire, **lane):
    """A worker whose engine takes two jobs at a time."""
    engine = Tracked()
    worker = hire(engine, engine=EngineSettings(driver="echo", models=("m",), concurrency=2), **lane)
    worker.door.lease_seconds = 30
    return engine, worker


def test_an_engine_never_has_more_jobs_than_places_over_all_its_shards(hire):
    engine, worker = _crowded(hire, slots=2)
    threads = [worker.in_background(an_order(10)) for _ in range(2)]
    _until(lambda: engine.inside_count == 2)
    time.sleep(0.03)  # for a third, which must not come
    engine.ended = set(range(10))
    for thread in threads:
        thread.join(5)
    assert engine.most_inside == 2
    assert sum(len(event.jobs) for event in worker.events()) == 20


def test_a_cancelled_job_ends_alone_whether_it_runs_or_waits(hire):
    engine, worker = _crowded(hire)
    thread = worker.in_background(an_order(5))
    _until(lambda: engine.inside == {0, 1})
    worker.door.cancelled_jobs = Bitmap.of([0, 3]).to_bytes()
    worker.runner.renew_soon()
    _until(lambda: engine.inside == {1, 2})  # the place of job 0 went to the next one
    engine.ended = {1, 2, 4}
    thread.join(5)
    events = worker.events()
    ran = _ran(events)
    assert {index for index, job in ran.items() if job.error_code is ErrorCode.JOB_CANCELLED} == {0, 3}
    assert {index for index, job in ran.items() if job.outcome is Outcome.SUCCEEDED} == {1, 2, 4}
    assert (sum(len(event.jobs) for event in events), _returned(events)) == (5, [])
    assert ran[3].usage.accelerator_us < ran[1].usage.accelerator_us


def test_a_job_cancelled_before_the_claim_never_reaches_the_engine(hire):
    worker = hire(Broken(AssertionError("it ran")))
    worker.door.cancelled_jobs = Bitmap.of([0]).to_bytes()
    assert _ran(worker.run(an_order()))[0].error_code is ErrorCode.JOB_CANCELLED


def test_jobs_that_waited_for_a_place_at_a_stop_never_ran(hire):
    engine, worker = _crowded(hire)
    thread = worker.in_background(an_order(5))
    _until(lambda: engine.inside == {0, 1})
    worker.runner.preempt()
    thread.join(5)
    events = worker.events()
    assert {(index, job.outcome) for index, job in _ran(events).items()} == {
        (0, Outcome.PREEMPTED), (1, Outcome.PREEMPTED)
    }  # fmt: skip
    assert _returned(events) == [ErrorCode.PREEMPTED]
