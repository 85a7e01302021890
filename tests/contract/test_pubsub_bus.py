"""Google Pub/Sub against the contract, played by Google's own emulator, and what the driver promises beyond."""

from __future__ import annotations

import time

import pytest
from google.pubsub_v1.types import PubsubMessage

from broker.bus.drivers.pubsub.sdk import open_clients, read_url
from tests.contract.bus_contract import BusContract
from tests.contract.bus_under_test import Features
from tests.contract.worker_contract import WorkerContract
from tests.proxy import FaultProxy

LEASE_SECONDS = 2.0  # the emulator takes less than Google's ten seconds
MESSAGE_BYTES_MAX = 200_000
OUTAGE_SECONDS = 5.0


def features_of(url, **more):
    project, settings = read_url(url)
    clients = open_clients(settings)

    def inject(queue, data):
        # Google takes no message without any content.
        message = PubsubMessage(data=data, attributes={"from": "a stranger"})
        clients.publisher.publish(topic=f"projects/{project}/topics/{queue}", messages=[message])

    def dead_letters(queue):
        subscription = f"projects/{project}/subscriptions/{queue}-dead"
        answer = clients.subscriber.pull(subscription=subscription, max_messages=100, timeout=3)
        found = sorted(answer.received_messages, key=lambda each: int(each.message.message_id))
        return [(each.message.data, each.message.attributes["reason"]) for each in found]

    return Features(
        url=url,
        options={
            "create": True,
            "lease_seconds": LEASE_SECONDS,
            "max_message_bytes": MESSAGE_BYTES_MAX,
            "receive_seconds": 2.0,  # the emulator lets a pull wait on at a subscription that was deleted
        },
        lease_seconds=LEASE_SECONDS,
        message_bytes_max=MESSAGE_BYTES_MAX,
        unreachable_url="lanepubsub://nowhere/?endpoint=127.0.0.1:1",
        inject=inject,
        dead_letters=dead_letters,
        three_attempts={"max_attempts": 3},
        settle_seconds=0.5,
        counts_messages=False,
        **more,
    )


class OnPubSub:
    @pytest.fixture
    def features(self, private_pubsub):
        return features_of(private_pubsub.url)

    @pytest.fixture
    def private_features(self, private_pubsub):
        """Pub/Sub outlives what a client sees of an outage, and the emulator does not: so the way there is cut."""
        with FaultProxy("127.0.0.1", private_pubsub.port) as proxy:

            def restart():
                proxy.refuse()
                time.sleep(OUTAGE_SECONDS)
                proxy.heal()

            yield features_of(
                f"lanepubsub://private/?endpoint=127.0.0.1:{proxy.port}",
                isolated_url=f"lanepubsub://elsewhere/?endpoint=127.0.0.1:{proxy.port}",
                restart=restart,
            )


class TestPubSubBus(OnPubSub, BusContract):
    """All cases of a bus."""

    def test_c03_a_queue_that_is_full_pushes_back(self, bus):
        pytest.skip("Pub/Sub bounds no queue; it keeps a message for seven days")


class TestPubSubWorker(OnPubSub, WorkerContract):
    """All cases of a worker."""
