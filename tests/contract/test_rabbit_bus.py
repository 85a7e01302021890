"""RabbitMQ against the contract, with quorum and with classic queues, and what it promises beyond."""

from __future__ import annotations

import time

import kombu
import pytest

from tests.contract.bus_contract import BusContract
from tests.contract.bus_under_test import Features
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
