"""A worker of lane-a for the tests: real runner, real in-memory bus; the test holds the lease door."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from contextlib import contextmanager

from broker.bus.envelope import Kind, open_event, seal
from broker.bus.inbox import Inbox
from broker.bus.publisher import Publisher
from broker.domain.events import JobsRan, ShardReturned
from broker.domain.shard import ClaimAnswer, RenewAnswer
from broker.signing import KeyRing, KeyRole, PublicKey
from tests.unit.builders import NOW_US, SECOND_US, FixedClock, a_lane, a_signer
from workers.engines.echo import EchoEngine
from workers.runner import Deployment, ShardRunner


class Door:
    """Answers as the test tells it to."""

    def __init__(self):
        self.grants, self.renews, self.cancels_claim, self.cancels, self.fails = True, True, False, False, False
        self.lease_seconds, self.cancelled_jobs = 0.15, b""
        self.claims, self.renewals = [], []
        self.claimed_at, self.renewed_at = 0.0, []

    def claim(self, question):
        self.claimed_at = time.monotonic()
        self.claims.append(question)
        return ClaimAnswer(self.grants, self.lease_seconds, self.cancels_claim, self.cancelled_jobs)

    def renew(self, question):
        self.renewed_at.append(time.monotonic())
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
        return seal(self.broker, Kind.SHARD, audience, order, now_us=NOW_US, valid_us=valid_us)

    def run(self, order, **sealing):
        self._work(order, **sealing)
        return self.events()

    def in_background(self, order):
        # A daemon: where a test fails with work under way, it must not wait for that for ever.
        thread = threading.Thread(target=self._work, args=[order], daemon=True)
        thread.start()
        return thread

    def _work(self, order, **sealing):
        """Until the shard has ended."""
        self.runner.run(self.seal(order, **sealing))
        self.runner.wait(10, order.shard_id)

    def settle(self):
        """Until all has happened that can without a word from outside, however slow the machine is."""

        async def turns():
            for _ in range(100):
                await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(turns(), self.loop).result(5)

    def events(self):
        found = []
        while deliveries := self.inbox.receive(1_000, 0.1):  # a busy machine needs a moment
            found += [open_event(self.ring, one.envelope, NOW_US).body for one in deliveries]
        return found

    def close(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()
        self.inbox.close()
        self.publisher.close()


@contextmanager
def hiring():
    """A function that hires workers, each with its engine; at the end they all close."""
    hired = []

    def make(engine=None, /, **lane):
        hired.append(Worker(engine or EchoEngine(), **lane))
        return hired[-1]

    try:
        yield make
    finally:
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


def ran_jobs(events):
    return {job.index: job for event in events if isinstance(event, JobsRan) for job in event.jobs}


def returned(events):
    return [event.reason for event in events if isinstance(event, ShardReturned)]


def until(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)
