"""A world whose jobs come over an in-memory bus: a producer, the door on the bus, and the notifier."""

from __future__ import annotations

import json
import threading
import time
import uuid

from broker.bus.drivers.memory import MemoryDriver, MemoryOptions, discard_bus
from broker.bus.envelope import Kind, seal
from broker.bus.inbox import Inbox
from broker.bus.publisher import Publisher
from broker.domain.bus_jobs import JOBS_QUEUE, SubmitJobs
from broker.intake.bus_jobs import MESSAGES_PER_STEP, BusJobs
from broker.intake.outlook import Outlook
from broker.intake.single_jobs import SingleJobs
from broker.sdk.jobs_bus import JobsPublisher, Replies
from broker.signing import KeyRing, KeyRole, PublicKey
from broker.stages.notifier import Notifier
from tests.unit.builders import DAY_SECONDS, MODEL, SECOND_US, World, a_signer

TENANT, OTHER_TENANT = "default", "another"
QUEUE = "replies.mine"


def a_request(text: str = "hi", **changes):
    return {"body": {"model": MODEL, "messages": [{"role": "user", "content": text}]}} | changes


class CountingInbox(Inbox):
    """Knows how many messages it is done with."""

    settled = 0

    def acknowledge(self, deliveries):
        super().acknowledge(deliveries)
        self.settled += len(deliveries)

    def reject(self, deliveries):
        super().reject(deliveries)
        self.settled += len(deliveries)


class ProducersWorld:
    """`world` does the rest. Close it."""

    def __init__(self, world: World, *, lease_seconds: float = 30) -> None:
        self.world = world
        self.name = uuid.uuid4().hex
        self.url = f"lanemem://{self.name}?lease_seconds={lease_seconds}"
        self.producer, producer_key = a_signer("producer")
        self.broker, broker_key = a_signer("broker")
        self.stranger, _ = a_signer("stranger")
        self.other, other_key = a_signer("other")
        self.ring = KeyRing(
            {
                "producer": PublicKey(KeyRole.PRODUCER, TENANT, producer_key.public_key()),
                "other": PublicKey(KeyRole.PRODUCER, OTHER_TENANT, other_key.public_key()),
                "broker": PublicKey(KeyRole.BROKER, "broker", broker_key.public_key()),
            }
        )
        self.submitting = SingleJobs(world.database, world.clock, world.wakeups)
        self._thread = threading.Thread(target=self.submitting.run, daemon=True)
        self._thread.start()
        self.outlook = Outlook(world.database, world.lanes, world.clock)
        self.inbox = CountingInbox(self.url, [JOBS_QUEUE], MESSAGES_PER_STEP)
        self.receiving = self.receiver(self.inbox)
        self.publisher = Publisher(self.url)
        self.notifier = Notifier(
            database=world.database,
            publisher=self.publisher,
            signer=self.broker,
            clock=world.clock,
            wakeups=world.wakeups,
        )
        self.jobs = JobsPublisher(self.url, self.producer, clock=world.clock, patience_seconds=0)
        self.replies = Replies(self.url, QUEUE, self.ring, clock=world.clock)

    def receiver(self, inbox, submitting=None):
        world = self.world
        return BusJobs(
            inbox=inbox,
            database=world.database,
            submitting=submitting or self.submitting,
            outlook=self.outlook,
            ring=self.ring,
            clock=world.clock,
            wakeups=world.wakeups,
        )

    def close(self) -> None:
        self.submitting.close()
        self._thread.join(5)
        for one in (self.inbox, self.publisher, self.jobs, self.replies):
            one.close()
        discard_bus(self.name)

    def sealed(self, jobs, *, reply_to="", signer=None, kind=Kind.JOBS, audience="broker", valid_seconds=DAY_SECONDS):
        """An envelope, of whatever is given."""
        text = jobs if isinstance(jobs, bytes) else json.dumps(jobs).encode()
        body = SubmitJobs(uuid.uuid4().bytes, text, reply_to)
        valid_us = valid_seconds * SECOND_US
        return seal(signer or self.producer, kind, audience, body, now_us=self.world.clock(), valid_us=valid_us)

    def put(self, *envelopes: bytes) -> None:
        self.publisher.publish_events(JOBS_QUEUE, envelopes)

    def receive(self, count: int) -> None:
        """Until it is done with so many messages more."""
        done, deadline = self.inbox.settled + count, time.monotonic() + 10
        while self.inbox.settled < done:
            assert self.receiving.step()
            assert time.monotonic() < deadline

    def waiting(self, queue: str = JOBS_QUEUE) -> int:
        return MemoryDriver(self.name, MemoryOptions()).size(queue)

    def dead(self) -> int:
        driver = MemoryDriver(self.name, MemoryOptions())
        return len(driver.dead_letters(JOBS_QUEUE))

    def notify_all(self) -> None:
        while self.notifier.step():
            pass

    def told(self, count: int) -> list:
        """So many replies, and no more."""
        found, deadline = [], time.monotonic() + 5
        while len(found) < count and time.monotonic() < deadline:
            found += self.replies.receive(0.2)
        return found + self.replies.receive(0)
