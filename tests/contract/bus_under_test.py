"""A bus under test: where it is, what it can do, and consumers that keep what they get."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
from kombu import Connection, Consumer, Exchange, Producer, Queue

from broker.bus.topology import prepare_kombu

__all__ = ["Bus", "Features", "Tap", "run_other_process"]


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """Where a bus is and what it can do; times in seconds."""

    url: str
    options: dict[str, Any] = {}
    lease_seconds: float
    isolated_url: str | None = None  # another namespace reachable from this process
    other_processes: bool = True  # a second process can reach the same bus
    quorum: bool = False
    asynchronous: bool = True
    batch: bool = True
    counts_attempts: bool = True
    exact_size: bool = True
    native_delete: bool = True
    message_bytes_max: int | None = None  # of the whole message, with what kombu adds
    dead_letters: Callable[[str], list[tuple[bytes, str]]] | None = None  # data and reason
    inject: Callable[[str, bytes], None] | None = None  # put foreign bytes past kombu
    max_attempts_option: str | None = None
    unreachable_url: str | None = None  # nothing answers there
    restart: Callable[[], None] | None = None  # restarts the bus's own process
    latency_ms_max: float = 250.0


class Bus:
    """A bus under test: opens connections and closes what a case leaves open."""

    def __init__(self, features: Features) -> None:
        prepare_kombu()
        self.features = features
        self._open: list[Connection] = []

    def connect(self, url: str | None = None, **options: Any) -> Connection:
        connection = Connection(url or self.features.url, transport_options={**self.features.options, **options})
        connection.connect()
        self._open.append(connection)
        return connection

    def queue(self, name: str | None = None) -> Queue:
        arguments = {"x-queue-type": "quorum"} if self.features.quorum else None
        name = name or f"contract.{uuid.uuid4().hex[:12]}"
        return Queue(name, Exchange(""), routing_key=name, queue_arguments=arguments)

    def publish(self, queue: Queue, *bodies: Any, connection: Connection | None = None, **properties: Any) -> None:
        producer = Producer((connection or self.connect()).channel())
        if "content_type" not in properties:
            properties["serializer"] = "json"
        for body in bodies:
            producer.publish(body, exchange="", routing_key=queue.name, declare=[queue], **properties)

    def tap(self, queue: Queue, prefetch: int = 0, connection: Connection | None = None, **options: Any) -> Tap:
        return Tap(connection or self.connect(**options), queue, prefetch)

    def close(self) -> None:
        for connection in self._open:
            connection.release()


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


def run_other_process(code: str, features: Features, name: str) -> Any:
    """Run the code in a process of its own, with `bus`, `connection` and `name` at hand."""
    plain = {"url": features.url, "options": features.options, "lease_seconds": 1.0, "quorum": features.quorum}
    prelude = (
        "from tests.contract.bus_under_test import Bus, Features\n"
        f"bus = Bus(Features(**{plain!r})); name = {name!r}; connection = bus.connect()\n"
    )
    return subprocess.Popen([sys.executable, "-c", prelude + code], stdout=subprocess.PIPE)
