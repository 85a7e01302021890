"""What `broker bus plan` and `apply` do on Pub/Sub, and that a bus which forgot everything is mended by them."""

from __future__ import annotations

import time
import uuid

import pytest

from broker.bus.bus_plan import QueueState
from broker.bus.driver import BusUnavailable
from broker.bus.drivers.pubsub.provision import provision
from broker.bus.drivers.pubsub.sdk import open_clients, read_url
from broker.bus.inbox import Inbox
from broker.bus.publisher import Publisher
from tests.contract.bus_under_test import published, received
from tests.services.private_pubsub import PrivatePubSub


@pytest.fixture
def name():
    return f"provision.{uuid.uuid4().hex[:8]}"


def states(lines):
    return {line.name: line.state for line in lines}


def notes(lines):
    return {line.name: line.note for line in lines}


def test_what_is_missing_is_said_made_and_then_present(private_pubsub, name):
    url, both = private_pubsub.url, (f"{name}-dead", name)
    plan = provision(url, [name], make=False)
    assert states(plan) == dict.fromkeys(both, QueueState.MISSING)
    assert f"the topic {name!r} is missing and the subscription {name!r} is missing" in notes(plan)[name]
    assert states(provision(url, [name], make=False)) == states(plan), "a plan makes nothing"
    assert states(provision(url, [name], make=True)) == dict.fromkeys(both, QueueState.CREATED)
    for again in (provision(url, [name], make=False), provision(url, [name], make=True)):
        assert states(again) == dict.fromkeys(both, QueueState.PRESENT)
    assert notes(again)[name] == (
        "topic and subscription; ack deadline 30 s, kept for 7 days, unused subscription ends never,"
        f" dead letters to {name}-dead after 100 deliveries"
    )


def test_a_lost_subscription_is_made_again_for_its_topic(private_pubsub, name):
    provision(private_pubsub.url, [name], make=True)
    subscriber = open_clients(read_url(private_pubsub.url)[1]).subscriber
    subscriber.delete_subscription(subscription=f"projects/private/subscriptions/{name}")
    lines = provision(private_pubsub.url, [name], make=True)
    assert states(lines) == {f"{name}-dead": QueueState.PRESENT, name: QueueState.CREATED}


def test_what_differs_is_shown_and_changed(private_pubsub, name):
    provision(private_pubsub.url, [name], make=True)
    url = f"{private_pubsub.url}&lease_seconds=60&max_deliveries=50&retention_seconds=3600"
    plan = provision(url, [name], make=False)
    assert states(plan)[name] is QueueState.DIFFERENT
    assert notes(plan)[name] == (
        "ack deadline is 30 s, and 60 s is wanted; kept for is 7 days, and 3600 s is wanted;"
        f" dead letters is to {name}-dead after 100 deliveries, and to {name}-dead after 50 deliveries is wanted:"
        " apply changes it"
    )
    assert notes(provision(url, [name], make=True))[name].startswith("changed: ack deadline is 30 s")
    assert states(provision(url, [name], make=False))[name] is QueueState.PRESENT


@pytest.mark.parametrize("make", [False, True])
def test_what_a_person_must_decide_is_named_and_left_alone(private_pubsub, name, make):
    provision(private_pubsub.url, [name], make=True)
    clients = open_clients(read_url(private_pubsub.url)[1])
    topic, subscription = f"projects/private/topics/{name}", f"projects/private/subscriptions/{name}"
    clients.publisher.delete_topic(topic=topic)
    line = provision(private_pubsub.url, [name], make=make)[1]
    assert line.state is QueueState.DIFFERENT
    assert "belongs to '_deleted-topic_'" in line.note
    assert f"`gcloud pubsub subscriptions delete {name} --project=private`" in line.note
    clients.subscriber.delete_subscription(subscription=subscription)
    clients.publisher.create_topic(name=topic)
    form = {"name": subscription, "topic": topic, "filter": 'attributes.colour="red"'}
    clients.subscriber.create_subscription(request={**form, "push_config": {"push_endpoint": "http://127.0.0.1:1/"}})
    line = provision(private_pubsub.url, [name], make=make)[1]
    assert line.state is QueueState.DIFFERENT
    assert "has the filter" in line.note
    assert "pushes to 'http://127.0.0.1:1/'" in line.note


def test_a_bus_that_is_away_and_a_name_that_cannot_be_are_errors(private_pubsub):
    with pytest.raises(BusUnavailable):
        provision("lanepubsub://private/?endpoint=127.0.0.1:1&retry_seconds=0.2", ["jobs"], make=False)
    with pytest.raises(ValueError, match="'q'"):
        provision(private_pubsub.url, ["q"], make=True)


def _refusal_once_reached(publisher, queue, seconds):
    """Why it takes nothing, once it answers again: the client's channel waits between its tries to connect."""
    deadline = time.monotonic() + seconds
    while True:
        with pytest.raises(BusUnavailable) as refused:
            publisher.publish_events(queue, [b"2"])
        if "failed to connect" not in str(refused.value) or time.monotonic() > deadline:
            return str(refused.value)
        time.sleep(0.2)


def test_a_bus_that_forgot_everything_is_mended_under_those_who_use_it():
    names = ["lane.a.shards", "lane.a.events"]
    with PrivatePubSub() as server:
        provision(server.url, names, make=True)
        publisher, inbox = Publisher(server.url), Inbox(server.url, names, prefetch=100)
        publisher.publish_events(names[0], [b"1"])
        inbox.acknowledge(received(inbox, 1, 10))
        publisher.publish_events(names[1], [b"forgotten"])
        server.kill()
        with pytest.raises(BusUnavailable):
            publisher.publish_events(names[0], [b"2"])
        server.start()
        assert "`broker bus apply` makes what is missing" in _refusal_once_reached(publisher, names[0], 30)
        assert received(inbox, 1, 3) == []
        assert set(states(provision(server.url, names, make=True)).values()) == {QueueState.CREATED}
        for queue in names:
            published(publisher, queue, [queue.encode()], 30)
        again = received(inbox, 2, 30)
        assert {delivery.envelope for delivery in again} == {queue.encode() for queue in names}
        inbox.acknowledge(again)
        publisher.close()
        inbox.close()
