"""A worker whose engine is in trouble or has a limit: real runner, real HTTP; what is sent, and what is handed back."""

from __future__ import annotations

import asyncio
import threading
import time

import msgspec
import pytest

from broker.domain.errors import ErrorCode
from broker.domain.lane import EngineSettings
from broker.domain.outcome import Outcome
from broker.domain.shard import Bitmap
from tests.harness.small_engine import SmallEngine
from tests.unit.builders import an_order
from tests.unit.hiring import hiring, ran_jobs, returned, until
from workers.engine import EngineError
from workers.engines.echo import EchoEngine
from workers.engines.openai_http import OpenAIHttpEngine

BUSY, FAILED = ErrorCode.ENGINE_BUSY, ErrorCode.ENGINE_FAILED
PLACES = 64


@pytest.fixture
def hire():
    with hiring() as make:
        yield make


@pytest.fixture
def serve():
    made = []

    def make(**options):
        made.append(SmallEngine(**options).open())
        return made[-1]

    yield make
    for server in made:
        server.close()


def at(hire, server, **lane):
    engine = OpenAIHttpEngine(server.url, concurrency=PLACES, use_proxy=False)
    settings = EngineSettings(driver="openai_http", models=("m",), concurrency=PLACES)
    worker = hire(engine, engine=settings, **lane)
    worker.door.lease_seconds = 30
    return worker


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_sick_server_gets_a_handful_and_the_shard_goes_back(hire, serve, status):
    sick, well = serve(status=status), serve()
    worker, other = at(hire, sick), at(hire, well)
    events = worker.run(an_order(100))
    assert sick.calls <= 8
    ran = ran_jobs(events)
    assert len(ran) == sick.calls
    code = ran[0].error_code
    assert returned(events) == [code]
    assert code not in (ErrorCode.PREEMPTED, ErrorCode.INTERRUPTED, ErrorCode.LEASE_LOST)
    assert len(ran_jobs(other.run(an_order(100)))) == well.calls == 100  # of another engine it says nothing

    before = sick.calls
    events = worker.run(an_order(50))
    assert sick.calls == before + 1  # the probe
    assert (list(ran_jobs(events)), len(returned(events))) == ([0], 1)

    sick.status = 200
    events = worker.run(an_order(50))
    assert {job.outcome for job in ran_jobs(events).values()} == {Outcome.SUCCEEDED}
    assert (len(ran_jobs(events)), returned(events)) == (50, [])


def test_a_shard_with_one_job_is_never_handed_back_for_it(hire, serve):
    worker = at(hire, serve(status=500))
    for _ in range(5):
        events = worker.run(an_order(1))
        assert (len(ran_jobs(events)), returned(events)) == (1, [])


def test_a_server_that_takes_four_at_once_gets_hardly_more_calls_than_lines(hire, serve):
    server = serve(at_once=4, answer_s=0.02)
    worker = at(hire, server, slots=2)
    left = 300
    while left:
        done = ran_jobs(worker.run(an_order(left)))
        assert {job.error_code for job in done.values()} <= {None, BUSY}
        left -= sum(job.outcome is Outcome.SUCCEEDED for job in done.values())
    assert (server.served, server.calls <= 330) == (300, True)


class Told:
    """Ends each call as the test's list says, the rest well; keeps those that `holds` names until `let_go`."""

    def __init__(self, ends=(), holds=()):
        self.ends, self.holds, self.begun, self.gate = list(ends), set(holds), [], None

    async def run(self, request):
        self.gate = self.gate or asyncio.Event()
        number = len(self.begun)
        self.begun.append(int(request.body.split(b"hello ")[1].split(b'"')[0]))
        if number in self.holds:
            await self.gate.wait()
        if number < len(self.ends) and self.ends[number]:
            raise self.ends[number]
        return await EchoEngine().run(request)

    def let_go(self, worker):
        worker.loop.call_soon_threadsafe(self.gate.set)


def told(hire, engine, concurrency=8, **lane):
    settings = EngineSettings(driver="echo", models=("m",), concurrency=concurrency)
    worker = hire(engine, engine=settings, **lane)
    worker.door.lease_seconds = 0.3
    return worker


def test_jobs_in_flight_end_by_themselves_and_the_rest_goes_back_after_them(hire):
    engine = Told([None, *[EngineError(FAILED, "no")] * 3], holds={0})
    worker = told(hire, engine)
    thread = worker.in_background(an_order(20))
    until(lambda: worker.deployment.throttle.trouble is FAILED)
    before = len(worker.door.renewals)
    until(lambda: len(worker.door.renewals) >= before + 2)  # the lease is kept meanwhile
    engine.let_go(worker)
    thread.join(5)
    events = worker.events()
    ran = ran_jobs(events)
    assert (sorted(ran), ran[0].outcome, returned(events)) == ([0, 1, 2, 3], Outcome.SUCCEEDED, [FAILED])
    assert worker.deployment.throttle.trouble is None  # a success after it ends the trouble


def test_two_shards_under_way_both_give_up_and_so_does_what_runs_beside(hire):
    engine = Told([None, None, *[EngineError(FAILED, "no")] * 8], holds={0, 1})
    # A slot for each of the two, whichever has the calls that hang, and one for what comes then.
    worker = told(hire, engine, concurrency=3, slots=3)
    threads = [worker.in_background(an_order(20)) for _ in range(2)]
    until(lambda: worker.deployment.throttle.trouble is FAILED)
    beside = msgspec.structs.replace(an_order(3), tenant_id="small", beside=True)
    worker.runner.run(worker.seal(beside))
    worker.runner.wait(5, beside.shard_id)
    assert len(engine.begun) == 6  # two held, three that failed, and a probe at the place that was free
    events = worker.run(msgspec.structs.replace(an_order(1), exclusive=True))  # it would have to wait, and comes back
    assert len(engine.begun) == 6
    engine.let_go(worker)
    for thread in threads:
        thread.join(5)
    assert returned(events + worker.events()) == [FAILED] * 4


def paused(hire):
    """A worker that one success and one refusal have told to wait for a while; three jobs are done."""
    engine = Told([None, None, EngineError(BUSY, "no", retry_after_s=1.5)])
    worker = told(hire, engine, concurrency=1)
    thread = worker.in_background(an_order(10))
    until(lambda: len(engine.begun) == 3)
    until(lambda: worker.deployment.throttle.wait_s > 0)
    return engine, worker, thread


def test_while_it_waits_as_long_as_it_was_asked_to_leases_are_kept_and_a_cancel_hits_one_job(hire):
    engine, worker, thread = paused(hire)
    worker.door.cancelled_jobs = Bitmap.of([5]).to_bytes()
    worker.runner.renew_soon()
    before = len(worker.door.renewals)
    until(lambda: len(worker.door.renewals) >= before + 3)
    assert len(engine.begun) == 3
    thread.join(8)
    events = worker.events()
    ran = ran_jobs(events)
    assert ran[5].error_code is ErrorCode.JOB_CANCELLED
    assert [index for index, job in sorted(ran.items()) if job.outcome is Outcome.SUCCEEDED] == [0, 1, 3, 4, 6, 7, 8, 9]
    assert (ran[2].error_code, 5 in engine.begun, returned(events)) == (BUSY, False, [])


def test_while_it_waits_a_drain_still_hands_back_at_once(hire):
    engine, worker, thread = paused(hire)
    worker.runner.preempt()
    thread.join(1.0)
    assert not thread.is_alive()
    events = worker.events()
    assert (sorted(ran_jobs(events)), returned(events)) == ([0, 1, 2], [ErrorCode.PREEMPTED])
    assert len(engine.begun) == 3


def test_a_cancel_during_the_hand_back_adds_nothing(hire, monkeypatch):
    engine = Told([EngineError(FAILED, "no")] * 3)
    worker = told(hire, engine)
    publishing, confirm = threading.Event(), threading.Event()
    publish = worker.publisher.publish_events

    def slow_publish(queue, envelopes):
        publishing.set()
        confirm.wait(5)
        publish(queue, envelopes)

    monkeypatch.setattr(worker.publisher, "publish_events", slow_publish)
    thread = worker.in_background(an_order(10))
    assert publishing.wait(5)
    worker.door.cancelled_jobs = Bitmap.of([7, 8]).to_bytes()
    worker.runner.renew_soon()
    before = len(worker.door.renewals)
    until(lambda: len(worker.door.renewals) >= before + 2)
    confirm.set()
    thread.join(5)
    events = worker.events()
    assert (len(ran_jobs(events)), returned(events)) == (len(engine.begun), [FAILED])


def test_a_job_for_an_engine_that_is_not_started_is_told_so_and_nothing_is_sent(hire):
    engine = Told()
    worker = told(hire, engine)
    worker.deployment.say_starting("it loads its model")
    events = worker.run(an_order(10))
    ran = ran_jobs(events)
    assert {(job.error_code, job.message) for job in ran.values()} == {
        (ErrorCode.ENGINE_STARTING, "it loads its model")
    }
    assert (engine.begun, returned(events)) == ([], [ErrorCode.ENGINE_STARTING])
    worker.loop.call_soon_threadsafe(worker.deployment.say_started)
    assert {job.outcome for job in ran_jobs(worker.run(an_order(10))).values()} == {Outcome.SUCCEEDED}


def asked_to_leave_it_alone(hire, retry_after_s=9.0):
    """A worker that did two jobs, and was then asked to wait for long."""
    engine = Told([None, None, EngineError(BUSY, "no", retry_after_s=retry_after_s)])
    worker = told(hire, engine, concurrency=1, slots=2)
    events = worker.run(an_order(5))
    assert (sorted(ran_jobs(events)), returned(events)) == ([0, 1, 2], [BUSY])
    return engine, worker


def test_what_cannot_be_sent_is_not_handed_back_at_once_so_that_it_does_not_go_round_and_round(hire):
    engine, worker = asked_to_leave_it_alone(hire)
    began = time.monotonic()
    for _ in range(2):
        assert returned(worker.run(an_order(5))) == [BUSY]
    assert (time.monotonic() - began >= 1.0, len(engine.begun)) == (True, 3)


def test_what_was_held_back_goes_on_as_soon_as_the_trouble_is_over(hire):
    _engine, worker = asked_to_leave_it_alone(hire)
    threads = [worker.in_background(an_order(5)) for _ in range(2)]
    until(lambda: len(worker.door.claims) == 3)
    worker.settle()
    worker.loop.call_soon_threadsafe(worker.deployment.throttle.open)
    for thread in threads:
        thread.join(5)
    events = worker.events()
    assert ([job.outcome for job in ran_jobs(events).values()], returned(events)) == ([Outcome.SUCCEEDED] * 5, [])


@pytest.mark.parametrize("cancels", [False, True], ids=["a drain", "a cancel"])
def test_what_is_held_back_ends_at_once_by(hire, cancels):
    engine, worker = asked_to_leave_it_alone(hire)
    worker.door.lease_seconds = 30
    thread = worker.in_background(an_order(5))
    until(lambda: len(worker.door.claims) == 2)
    worker.settle()
    began = time.monotonic()
    if cancels:
        worker.door.cancels = True
        worker.runner.renew_soon()
    else:
        worker.runner.preempt()
    thread.join(5)
    assert time.monotonic() - began < 0.4
    assert returned(worker.events()) == [ErrorCode.BATCH_CANCELLED if cancels else ErrorCode.PREEMPTED]
    assert len(engine.begun) == 3
