"""kombu's own `gcpubsub` through the same contract. It is free to fail, so CI leaves it out:

    BROKER_WRITE_MATRIX=1 python -m pytest -n 2 tests/contract/stock_gcpubsub.py

It takes its emulator from the environment alone, so each test sets that.
"""

from __future__ import annotations

import faulthandler
import threading
import time
import uuid

import pytest
from google.pubsub_v1.types import PubsubMessage

from broker.bus.driver import BusUnavailable
from broker.bus.drivers.pubsub.sdk import open_clients, read_url
from broker.bus.publisher import Publisher
from tests.contract.bus_contract import BusContract
from tests.contract.bus_under_test import Features
from tests.contract.worker_contract import WorkerContract
from tests.proxy import FaultProxy

LEASE_SECONDS = 10.0
OUTAGE_SECONDS = 5.0
TEST_SECONDS_MAX = 70


def features_of(server, project="stock", **more):
    clients = open_clients(read_url(server.url)[1])

    def inject(queue, data):
        message = PubsubMessage(data=data, attributes={"routing_key": queue})
        clients.publisher.publish(topic=f"projects/{project}/topics/{queue}", messages=[message])

    return Features(
        url=f"gcpubsub://projects/{project}",
        options={"ack_deadline_seconds": int(LEASE_SECONDS), "polling_interval": 0.1},
        lease_seconds=LEASE_SECONDS,
        message_bytes_max=7_499_700,  # JSON in base64 in JSON, within the 10 MB of a request
        unreachable_url="gcpubsub://projects/nowhere",
        inject=inject,
        dead_letters=lambda queue: [],  # it has none
        three_attempts={"max_attempts": 3},
        counts_messages=False,
        counts_attempts=False,
        **more,
    )


class OnStockGcpubsub:
    @pytest.fixture(autouse=True)
    def surroundings(self, private_pubsub, monkeypatch):
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", private_pubsub.endpoint)
        # A case that hangs inside Google's retries ends with its process, and `-n` goes on in another.
        faulthandler.dump_traceback_later(TEST_SECONDS_MAX, exit=True)
        yield
        faulthandler.cancel_dump_traceback_later()

    @pytest.fixture
    def features(self, private_pubsub):
        return features_of(private_pubsub)

    @pytest.fixture
    def private_features(self, private_pubsub, monkeypatch):
        with FaultProxy("127.0.0.1", private_pubsub.port) as proxy:
            monkeypatch.setenv("PUBSUB_EMULATOR_HOST", f"127.0.0.1:{proxy.port}")

            def restart():
                proxy.refuse()
                time.sleep(OUTAGE_SECONDS)
                proxy.heal()

            yield features_of(
                private_pubsub,
                f"private-{uuid.uuid4().hex[:6]}",
                isolated_url="gcpubsub://projects/elsewhere",
                restart=restart,
            )


class TestStockGcpubsubBus(OnStockGcpubsub, BusContract):
    """All cases of a bus."""

    def test_c03_a_queue_that_is_full_pushes_back(self, bus):
        pytest.skip("Pub/Sub bounds no queue; it keeps a message for seven days")

    def test_c03_publishing_to_a_bus_that_is_down_raises_in_time(self, bus, monkeypatch):
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "127.0.0.1:1")
        raised = []

        def publish():
            try:
                Publisher(bus.features.unreachable_url).publish_events("queue", [b"1"])
            except BusUnavailable as error:
                raised.append(error)

        thread = threading.Thread(target=publish, daemon=True)
        thread.start()
        thread.join(10)
        assert raised, "ten seconds on it was still trying"


class TestStockGcpubsubWorker(OnStockGcpubsub, WorkerContract):
    """All cases of a worker."""
