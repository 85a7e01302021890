"""RabbitMQ against the contract, with quorum and with classic queues, and what it promises beyond."""

from __future__ import annotations

import time
import uuid
from contextlib import suppress

import kombu
import pytest
from kombu import Producer

from broker.bus.apps import start_in_process, worker_app
from broker.bus.driver import BusUnavailable, MessageRefused, PublishError, QueueMissing
from broker.bus.inbox import Inbox
from broker.bus.publisher import Publisher
from broker.bus.topology import lane_queue, open_connection
from tests.contract.bus_contract import BusContract
from tests.contract.bus_under_test import Features, published, received
from tests.contract.worker_contract import WorkerContract

MESSAGE_BYTES_MAX = 1_000_000


def features_of(url, **more):
    def inject(queue, data):
        with kombu.Connection(url) as connection:
            channel = connection.channel()
            channel._basic_publish(channel.prepare_message(data), routing_key=queue)

    def dead_letters(queue):
        found = []
        with kombu.Connection(url) as connection:
            deadline = time.monotonic() + 3  # dead letters travel after the rejection
            while time.monotonic() < deadline and len(found) < 2:
                message = connection.default_channel.basic_get(f"{queue}-dead", no_ack=True)
                if message is None:
                    if found:
                        break
                    time.sleep(0.1)
                else:
                    found.append((message.body, message.properties["application_headers"]["x-death"][0]["reason"]))
        return [(data if isinstance(data, bytes) else data.encode(), reason) for data, reason in found]

    return Features(
        url=url,
        lease_seconds=0.5,  # there are no leases: a message is a consumer's for as long as its connection lives
        message_bytes_max=MESSAGE_BYTES_MAX,
        unreachable_url="amqp://guest:guest@127.0.0.1:1//",
        inject=inject,
        dead_letters=dead_letters,
        **more,
    )


def private_features_of(server, **more):
    def restart():
        server.kill()
        server.start()

    return features_of(server.url, isolated_url=f"{server.url.rstrip('/')}/elsewhere", restart=restart, **more)


OPTIONS = {"max_message_bytes": MESSAGE_BYTES_MAX, "confirm_seconds": 4.0}
QUORUM = {
    "options": OPTIONS,
    # A quorum queue on one node that dies within a second of the queue's making finds no leader afterwards (seen with
    # RabbitMQ 3.10.8 and 3.8.34, rabbitmq-server#10070); its messages are back when it is made to elect one.
    "settle_seconds": 2.0,
    "three_attempts": {"delivery_limit": 2},  # the count of deliveries that failed
    "poison_reason": "delivery_limit",
}
CLASSIC = {"options": {**OPTIONS, "queue_type": "classic"}, "counts_attempts": False}


class OnQuorum:
    @pytest.fixture
    def features(self, rabbitmq_url):
        return features_of(rabbitmq_url, **QUORUM)

    @pytest.fixture
    def private_features(self, private_rabbit):
        return private_features_of(private_rabbit, **QUORUM)


class OnClassic:
    @pytest.fixture
    def features(self, rabbitmq_url):
        return features_of(rabbitmq_url, **CLASSIC)

    @pytest.fixture
    def private_features(self, private_rabbit):
        return private_features_of(private_rabbit, **CLASSIC)


class TestQuorumBus(OnQuorum, BusContract):
    """All cases of a bus."""


class TestQuorumWorker(OnQuorum, WorkerContract):
    """All cases of a worker."""


class TestClassicBus(OnClassic, BusContract):
    """All cases of a bus."""


class TestClassicWorker(OnClassic, WorkerContract):
    """All cases of a worker."""


def test_a_batch_names_what_no_queue_takes_and_the_rest_is_there(rabbitmq_url, rabbit_queue):
    with open_connection(rabbitmq_url) as connection:
        producer = Producer(connection.channel())
        with pytest.raises(PublishError) as caught, producer.batch():  # noqa: PT012 (the batch fails at its end)
            for name in (rabbit_queue, "contract.nowhere", rabbit_queue, "contract.nowhere"):
                producer.publish("x", exchange="", routing_key=name, declare=[lane_queue(rabbitmq_url, rabbit_queue)])
        assert list(caught.value.errors) == [1, 3]
        assert all(isinstance(error, QueueMissing) for error in caught.value.errors.values())
        producer.publish("x", exchange="", routing_key=rabbit_queue)  # the channel goes on
        assert connection.channel().queue_declare(rabbit_queue, passive=True).message_count == 3


def test_a_full_queue_names_what_it_refused_of_a_batch(rabbitmq_url, rabbit_queue):
    url = f"{rabbitmq_url}?max_messages=10&queue_type=classic"
    publisher, inbox = Publisher(url), Inbox(url, [rabbit_queue], 100)
    with pytest.raises(PublishError, match="full") as caught:
        publisher.publish_events(rabbit_queue, [b"%d" % number for number in range(30)])
    refused = set(caught.value.errors)
    assert all(isinstance(error, MessageRefused) for error in caught.value.errors.values())
    there = {int(delivery.envelope) for delivery in received(inbox, 30, 1.0)}
    assert there == set(range(30)) - refused
    assert refused
    inbox.close()
    publisher.close()


def test_an_inbox_goes_on_when_an_acknowledgement_met_a_dead_connection(private_rabbit):
    queue = f"contract.{uuid.uuid4().hex}"
    publisher, inbox = Publisher(private_rabbit.url), Inbox(private_rabbit.url, [queue], 10)
    publisher.publish_events(queue, [b"before"])
    before = received(inbox, 1, 10.0)
    time.sleep(QUORUM["settle_seconds"])
    private_rabbit.control("stop_app")
    private_rabbit.control("start_app")
    inbox.acknowledge(before)
    with suppress(BusUnavailable):
        publisher.publish_events(queue, [b"lost with the connection"])
    publisher.publish_events(queue, [b"after"])
    found, deadline = set(), time.monotonic() + 20
    while b"after" not in found and time.monotonic() < deadline:
        found.update(delivery.envelope for delivery in inbox.receive(10, 1.0))
    assert {b"before", b"after"} <= found
    inbox.close()
    publisher.close()


def test_a_broker_that_hangs_is_unavailable_in_time_and_closing_does_not_wait_for_it(private_rabbit):
    publisher = Publisher(private_rabbit.url, {"confirm_seconds": 1.0, "answer_seconds": 1.0})
    inbox = Inbox(private_rabbit.url, ["contract.hangs"], 10, {"answer_seconds": 1.0})
    publisher.publish_events("contract.hangs", [b"before"])
    inbox.receive(1, 0)
    private_rabbit.pause()
    try:
        began = time.monotonic()
        with pytest.raises(BusUnavailable, match="before it confirmed"):
            publisher.publish_events("contract.hangs", [b"%d" % number * 10_000 for number in range(100)])
        with pytest.raises(BusUnavailable):
            publisher.publish_events("contract.hangs", [b"again"])
        assert time.monotonic() - began < 15
        began = time.monotonic()
        inbox.close()
        assert time.monotonic() - began < 5
    finally:
        private_rabbit.resume()
    published(publisher, "contract.hangs", [b"after"], 10)
    publisher.close()


def test_a_worker_declares_no_queues_for_delays_and_warns_of_none(private_rabbit, capfd):
    """Celery would, on quorum queues: 28 of them, and a line in the log at each start."""
    url = f"{private_rabbit.url.rstrip('/')}/no-delays"
    name = f"lane.{uuid.uuid4().hex[:8]}.shards"
    private_rabbit.control("add_vhost", "no-delays")
    private_rabbit.control("set_permissions", "-p", "no-delays", "guest", ".*", ".*", ".*")
    worker = start_in_process(worker_app("no-delays", url, [name], 1, run_shard=lambda _envelope: None))
    try:
        with kombu.Connection(url) as connection, pytest.raises(connection.channel_errors, match="NOT_FOUND"):
            connection.channel().queue_declare("celery_delayed_27", passive=True)
    finally:
        worker.stop(5)
    assert "delayed delivery" not in capfd.readouterr().err


@pytest.fixture
def rabbit_queue(rabbitmq_url):
    name = f"contract.{uuid.uuid4().hex[:12]}"
    yield name
    with open_connection(rabbitmq_url) as connection:
        for each in (name, f"{name}-dead"):
            connection.default_channel.queue_delete(each)
