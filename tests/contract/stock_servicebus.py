"""kombu's own `azureservicebus` through the same contract. It is free to fail, so CI leaves it out:

BROKER_WRITE_MATRIX=1 python -m pytest -n 2 tests/contract/stock_servicebus.py
"""

from __future__ import annotations

import faulthandler

import pytest
from azure.servicebus.exceptions import MessageSizeExceededError

from infra.emulators.servicebus import Emulator, Options
from tests.contract import stock_azure
from tests.contract.bus_contract import BusContract
from tests.contract.test_servicebus_bus import Process, features_of
from tests.contract.worker_contract import WorkerContract

LEASE_SECONDS = 10
TEST_SECONDS_MAX = 90


def stock_features(port, **more):
    ours = features_of(port)
    connection_string = (
        f"Endpoint=sb://127.0.0.1:{port};SharedAccessKeyName=RootManageSharedAccessKey;SharedAccessKey=SAS_KEY_VALUE;"
        "UseDevelopmentEmulator=true;"
    )
    return type(ours)(
        url="stockasb://name:key@local",
        options={
            "connection_string": connection_string,
            "peek_lock_seconds": LEASE_SECONDS,
            "wait_time_seconds": 1,
            "polling_interval": 0.1,
        },
        imports=f"import {stock_azure.__name__}",
        lease_seconds=float(LEASE_SECONDS),
        message_bytes_max=196_500,  # JSON in base64, within 256 KB
        counts_attempts=False,
        unreachable_url=None,
        inject=ours.inject,
        dead_letters=ours.dead_letters,
        three_attempts={"max_attempts": 3},
        **more,
    )


@pytest.fixture(scope="module")
def server():
    with Emulator(Options(tls=False)) as running:
        yield running


class OnStock:
    @pytest.fixture(autouse=True)
    def limit(self):
        # A case that hangs ends with its process, and `-n` goes on in another.
        faulthandler.dump_traceback_later(TEST_SECONDS_MAX, exit=True)
        yield
        faulthandler.cancel_dump_traceback_later()

    @pytest.fixture
    def features(self, server):
        return stock_features(server.port)

    @pytest.fixture
    def private_features(self, tmp_path):
        process = Process(tmp_path / "journal").start()

        def restart():
            process.kill()
            process.start()

        yield stock_features(process.port, restart=restart)
        process.kill()


class TestStockServiceBusBus(OnStock, BusContract):
    """All cases of a bus."""

    def test_c03_a_queue_that_is_full_pushes_back(self, bus):
        pytest.skip("a queue's size can't be set through it")

    def test_c03_publishing_to_a_bus_that_is_down_raises_in_time(self, bus):
        pytest.skip("it takes no other address than Azure's")

    def test_c12_the_largest_message_passes_and_a_larger_one_is_refused(self, bus):
        """The same, but for the wording of the refusal, which is Microsoft's."""
        limit = bus.features.message_bytes_max
        queue = bus.queue()
        bus.publish(queue, b"\xff" * (limit - 1_024), content_type="application/octet-stream")
        with pytest.raises(MessageSizeExceededError):
            bus.publish(queue, b"\xff" * (limit + 1), content_type="application/octet-stream")
        (message,) = bus.tap(queue).pump(6.0, 1)
        assert len(message.body) == limit - 1_024

    def test_c21_two_urls_are_two_buses(self, private_bus):
        pytest.skip("it takes no other address than Azure's")


class TestStockServiceBusWorker(OnStock, WorkerContract):
    """All cases of a worker."""
