from __future__ import annotations

import threading
import time
import uuid

import pytest
from kombu import Producer

from broker.bus.driver import BusUnavailable
from broker.bus.drivers.memory import MemoryDriver, MemoryOptions
from broker.bus.inbox import Inbox
from broker.bus.publisher import Publisher
from broker.bus.topology import open_connection


@pytest.fixture
def name():
    return f"inbox-{uuid.uuid4().hex}"


@pytest.fixture
def publisher(name):
    under_test = Publisher(f"lanemem://{name}")
    yield under_test
    under_test.close()


@pytest.fixture
def inbox(name):
    under_test = Inbox(f"lanemem://{name}", ["a", "b"], prefetch=100)
    yield under_test
    under_test.close()


def _waiting(name, queue):
    return MemoryDriver(name, MemoryOptions()).size(queue)


def test_it_waits_for_the_first_and_takes_what_is_there(publisher, inbox):
    assert inbox.receive(10, 0.01) == []
    publisher.publish_events("a", [b"1", b"2", b"3"])
    publisher.publish_events("b", [b"4"])
    deliveries = []
    while len(deliveries) < 4:
        deliveries += inbox.receive(10, 1.0)
    assert sorted((delivery.queue, delivery.envelope) for delivery in deliveries) == [
        ("a", b"1"),
        ("a", b"2"),
        ("a", b"3"),
        ("b", b"4"),
    ]
    inbox.acknowledge(deliveries)
    inbox.acknowledge(deliveries)  # harmless
    assert inbox.receive(10, 0.01) == []


def test_the_limit_holds(publisher, inbox):
    publisher.publish_events("a", [b"%d" % number for number in range(5)])
    counts = [len(inbox.receive(2, 0.5)) for _ in range(3)]
    assert counts == [2, 2, 1]


def test_it_hears_at_once(publisher, inbox):
    inbox.receive(1, 0)
    waits_ms = []
    for _ in range(15):
        sent = []
        timer = threading.Timer(0.005, lambda sent=sent: (sent.append(time.perf_counter()), _publish(publisher)))
        timer.start()
        inbox.acknowledge(inbox.receive(1, 2.0))
        waits_ms.append((time.perf_counter() - sent[0]) * 1_000)
        timer.join()
    assert sorted(waits_ms)[7] < 10


def _publish(publisher):
    publisher.publish_events("a", [b"now"])


def test_closing_gives_the_unacknowledged_back(publisher, inbox, name):
    publisher.publish_events("a", [b"1", b"2", b"3"])
    deliveries = inbox.receive(3, 1.0)
    inbox.acknowledge(deliveries[:1])
    inbox.close()
    assert _waiting(name, "a") == 2
    assert inbox.receive(1, 0) == []


def test_after_a_lost_connection_it_reconnects_and_old_deliveries_are_harmless(publisher, inbox, name):
    publisher.publish_events("a", [b"1"])
    (old,) = inbox.receive(1, 1.0)
    inbox._connection.release()
    inbox._disconnect()
    (again,) = inbox.receive(1, 1.0)
    assert again.envelope == b"1"
    inbox.acknowledge([old])
    inbox.acknowledge([again])
    inbox.close()
    assert _waiting(name, "a") == 0


def test_a_bus_that_is_down_is_an_empty_answer():
    inbox = Inbox("amqp://127.0.0.1:1//", ["a"], prefetch=1)
    assert inbox.receive(1, 0.05) == []
    inbox.close()


@pytest.mark.parametrize(
    "content", [{"serializer": "json"}, {"serializer": "pickle"}, {"content_type": "application/data"}]
)
def test_foreign_messages_never_reach_the_caller(publisher, inbox, name, content):
    with open_connection(f"lanemem://{name}") as connection:
        body = b"abc" if "content_type" in content else [1, 2, 3]
        Producer(connection.channel()).publish(body, routing_key="a", exchange="", **content)
    publisher.publish_events("a", [b"good"])
    (delivery,) = inbox.receive(5, 1.0)
    assert delivery.envelope == b"good"
    (dead,) = MemoryDriver(name, MemoryOptions()).dead_letters("a")
    assert dead.reason == "rejected"


def test_a_bus_that_goes_on_refusing_is_asked_ever_more_seldom(monkeypatch):
    asked = []
    monkeypatch.setattr(Inbox, "_connect", lambda _inbox: asked.append(time.monotonic()) or _refuse())
    inbox = Inbox("lanemem://refusing", ["a"], prefetch=1)
    began = time.monotonic()
    while time.monotonic() - began < 2.0:
        assert inbox.receive(1, 0.1) == []
    inbox.close()
    assert [round(moment - began, 1) for moment in asked] == [0.0, 0.5, 1.5]


def _refuse():
    raise BusUnavailable("PRECONDITION_FAILED")
