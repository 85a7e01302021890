"""A bus under test: where it is, what it can do, and consumers that keep what they get."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
from kombu import Connection, Consumer, Producer, Queue

from broker.bus.driver import BusUnavailable
from broker.bus.inbox import Inbox
from broker.bus.topology import lane_queue, open_connection

__all__ = ["Bus", "Features", "Tap", "delete_queues", "published", "received", "run_other_process"]


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """Where a bus is and what it can do; times in seconds."""

    url: str
    options: dict[str, Any] = {}
    lease_seconds: float  # for how long to wait for what must not come back; the lease, where there is one
    message_bytes_max: int  # of the whole message, with what kombu adds
    dead_letters: Callable[[str], list[tuple[bytes, str]]]  # data and reason
    inject: Callable[[str, bytes], None]  # put foreign bytes past kombu
    isolated_url: str = ""  # another namespace of the same server
    bounded_url: str = ""  # queues of five messages; where empty, the option `max_messages` makes them
    bounded_message: bytes = b"m"  # of which a few fill a queue there
    unreachable_url: str | None = None  # nothing answers there
    restart: Callable[[], None] | None = None  # kills the bus's own process and starts it again
    settle_seconds: float = 0.0  # how long a new queue or a settlement needs before the queue or the server may die
    other_processes: bool = True  # a second process can reach the same bus
    counts_attempts: bool = True
    counts_messages: bool = True
    three_attempts: dict[str, Any] | None = None  # the options with which the fourth delivery doesn't come
    poison_reason: str = "delivered 3 times without being settled"
    queues_appear_by_themselves: bool = False
    imports: str = ""  # what another process must import before it knows the URL
    latency_ms_max: float = 250.0


class Bus:
    """A bus under test: opens connections, and closes and deletes what a case leaves."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self._open: list[Connection] = []
        self._inboxes: list[Inbox] = []
        self._queues: list[str] = []

    def connect(self, url: str | None = None, **options: Any) -> Connection:
        connection = open_connection(url or self.features.url, {**self.features.options, **options})
        connection.connect()
        self._open.append(connection)
        return connection

    def queue(self, name: str | None = None, **options: Any) -> Queue:
        if name is None:
            name = f"contract.{uuid.uuid4().hex[:12]}"
            self._queues.append(name)
        return lane_queue(self.features.url, name, {**self.features.options, **options})

    def inbox(self, name: str, **options: Any) -> Inbox:
        inbox = Inbox(self.features.url, [name], prefetch=100, transport_options={**self.features.options, **options})
        self._inboxes.append(inbox)
        return inbox

    def publish(self, queue: Queue, *bodies: Any, connection: Connection | None = None, **properties: Any) -> None:
        producer = Producer((connection or self.connect()).channel())
        if "content_type" not in properties:
            properties["serializer"] = "json"
        for body in bodies:
            producer.publish(body, exchange="", routing_key=queue.name, declare=[queue], **properties)

    def tap(self, queue: Queue, prefetch: int = 0, connection: Connection | None = None, **options: Any) -> Tap:
        return Tap(connection or self.connect(**options), queue, prefetch)

    def close(self) -> None:
        for inbox in self._inboxes:
            inbox.close()
        for connection in self._open:
            connection.release()
        delete_queues(self.features, self._queues)


def delete_queues(features: Features, names: list[str]) -> None:
    """Leave nothing on a server that others use too."""
    with open_connection(features.url, features.options) as connection:
        for name in names:
            for each in (name, f"{name}-dead"):
                connection.default_channel.queue_delete(each)


class Tap:
    """A consumer that keeps every message it gets, unacknowledged."""

    def __init__(self, connection: Connection, queue: Queue, prefetch: int) -> None:
        self.connection = connection
        self.channel = connection.channel()
        self.messages: list[Any] = []
        self.consumer = Consumer(self.channel, [queue], accept=["json"], on_message=self.messages.append)
        if prefetch:
            self.consumer.qos(prefetch_count=prefetch, apply_global=False)
        self.consumer.consume()

    def pump(self, seconds: float, count: int | None = None) -> list[Any]:
        """Deliver for so long, or until `count` messages have come in all."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and (count is None or len(self.messages) < count):
            try:
                self.connection.drain_events(timeout=left)
            except TimeoutError:
                break
        return self.messages

    def bodies(self) -> list[Any]:
        return [message.decode() for message in self.messages]

    def close(self) -> None:
        self.connection.release()


def received(inbox, count, seconds):
    """What the inbox gives until there are so many, or the time is over."""
    deadline = time.monotonic() + seconds
    deliveries = []
    while len(deliveries) < count and (left := deadline - time.monotonic()) > 0:
        deliveries += inbox.receive(count, left)
    return deliveries


def published(publisher, queue, envelopes, seconds):
    """Publish, trying again while the bus is away."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return publisher.publish_events(queue, envelopes)
        except BusUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def run_other_process(code: str, features: Features, name: str) -> Any:
    """Run the code in a process of its own, with `bus`, `connection` and `name` at hand."""
    plain = {"url": features.url, "options": features.options, "lease_seconds": 1.0, "message_bytes_max": 0}
    prelude = (
        f"{features.imports}\n"
        "from tests.contract.bus_under_test import Bus, Features\n"
        f"bus = Bus(Features(**{plain!r}, dead_letters=None, inject=None))\n"
        f"name = {name!r}; connection = bus.connect()\n"
    )
    return subprocess.Popen([sys.executable, "-c", prelude + code], stdout=subprocess.PIPE)
