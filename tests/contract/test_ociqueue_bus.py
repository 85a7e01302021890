"""OCI Queue against the contract, played by our emulator of it, and what the driver promises beyond."""

from __future__ import annotations

import base64
import contextlib
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from broker.bus.driver import BusUnavailable, PublishError
from broker.bus.publisher import Publisher
from infra.emulators.ociqueue import COMPARTMENT, Emulator, Limits, Options
from tests.contract.bus_contract import BusContract
from tests.contract.bus_under_test import Bus, Features, received
from tests.contract.worker_contract import WorkerContract

ROOT = Path(__file__).parents[2]
ELSEWHERE = "ocid1.compartment.oc1..elsewhere"
LEASE_SECONDS = 2
MESSAGE_BYTES_MAX = 104_000


class Process:
    """The emulator as a process of its own, with a journal, so that it can die and come back."""

    def __init__(self, journal):
        self.port = 0
        self._journal = journal
        self._process = None

    def start(self):
        command = [sys.executable, "-m", "infra.emulators.ociqueue", "--port", str(self.port)]
        self._process = subprocess.Popen(
            [*command, "--journal", str(self._journal)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        said = {}
        for line in self._process.stdout:
            if line.startswith("Ready"):
                break
            word, _, rest = line.strip().partition(": ")
            said[word] = rest
        self.port = int(said["Ports"].split()[1].rstrip(","))
        return self

    def kill(self):
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()


def url_of(port, compartment=COMPARTMENT):
    return f"laneoci://127.0.0.1:{port}/{compartment}?emulator=true"


@contextlib.contextmanager
def sdk_of(port):
    """Oracle's own clients beside the driver's: put a text into a queue, look at what it holds."""
    from broker.bus.drivers.ociqueue.address import address_of
    from broker.bus.drivers.ociqueue.directory import Directory
    from broker.bus.drivers.ociqueue.sdk import Sdk, oci

    address = address_of(url_of(port), {})
    sdk = Sdk(address)
    models = oci.queue.models

    def client(queue):
        place = Directory(sdk, address).find(queue)
        return sdk.messages(place.endpoint), place.ocid

    def put(queue, content):
        messages, ocid = client(queue)
        entry = models.PutMessagesDetailsEntry(content=content)
        messages.put_messages(ocid, models.PutMessagesDetails(messages=[entry]))

    def look(queue):
        messages, ocid = client(queue)
        return messages.get_messages(ocid, limit=20, timeout_in_seconds=0, visibility_in_seconds=0).data.messages

    yield SimpleNamespace(put=put, look=look, admin=sdk.admin, models=models)
    sdk.close()


def features_of(port, **more):
    def inject(queue, data):
        with sdk_of(port) as sdk:
            sdk.put(queue, base64.b64encode(data).decode())

    def dead_letters(queue):
        with sdk_of(port) as sdk:
            found = sdk.look(f"{queue}-dead")
        return [(base64.b64decode(each.content), each.metadata.custom_properties["reason"]) for each in found]

    return Features(
        url=url_of(port),
        options={"create": True, "lease_seconds": LEASE_SECONDS, "max_message_bytes": MESSAGE_BYTES_MAX},
        lease_seconds=LEASE_SECONDS,
        message_bytes_max=MESSAGE_BYTES_MAX,
        isolated_url=url_of(port, ELSEWHERE),
        unreachable_url=url_of(1),
        inject=inject,
        dead_letters=dead_letters,
        three_attempts={"max_attempts": 3},
        **more,
    )


@pytest.fixture(scope="module")
def server():
    with Emulator() as running:
        yield running


@pytest.fixture(scope="module")
def small_server():
    with Emulator(Options(limits=Limits(queue_bytes=2_000))) as running:
        yield running


class OnOciQueue:
    @pytest.fixture
    def features(self, server, small_server):
        return features_of(server.port, bounded_url=f"{url_of(small_server.port)}&create=true")

    @pytest.fixture
    def private_features(self, tmp_path):
        process = Process(tmp_path / "journal").start()

        def restart():
            process.kill()
            process.start()

        yield features_of(process.port, restart=restart)
        process.kill()


class TestOciQueueBus(OnOciQueue, BusContract):
    """All cases of a bus."""


class TestOciQueueWorker(OnOciQueue, WorkerContract):
    """All cases of a worker."""


class TestLoss(OnOciQueue):
    def test_nothing_is_lost_when_the_bus_is_killed_under_load(self, private_features, record_property):
        bus = Bus(private_features)
        name = bus.queue().name
        inbox = bus.inbox(name)
        inbox.receive(1, 0)  # makes the queue
        wanted = [b"%d" % number for number in range(3_000)]
        publishing = threading.Thread(target=publish_all, args=(private_features, name, wanted))
        publishing.start()
        got, kill_at, recovered_seconds = [], [500, 1_500, 2_500], []
        deadline = time.monotonic() + 60
        while len(set(got)) < len(wanted) and time.monotonic() < deadline:
            deliveries = inbox.receive(100, 1.0)
            if kill_at and len(got) >= kill_at[0]:
                kill_at.pop(0)
                began = time.monotonic()
                private_features.restart()  # with these deliveries in flight
                deliveries += received(inbox, 1, 30)
                recovered_seconds.append(round(time.monotonic() - began, 1))
            inbox.acknowledge(deliveries)
            got += [delivery.envelope for delivery in deliveries]
        publishing.join()
        assert kill_at == []
        assert set(got) == set(wanted)
        record_property("recovered_s", recovered_seconds)
        print(f"3,000 messages, 0 lost, {len(got) - 3_000} twice, delivering again after {recovered_seconds} s")
        bus.close()


def publish_all(features, name, envelopes):
    """As the outbox does: what was not confirmed is sent again."""
    publisher = Publisher(features.url, features.options)
    deadline = time.monotonic() + 60
    left = list(envelopes)
    while left:
        batch, left = left[:50], left[50:]
        try:
            publisher.publish_events(name, batch)
        except PublishError as error:
            left = [batch[index] for index in error.errors] + left
        except BusUnavailable:
            assert time.monotonic() < deadline
            left = batch + left
            time.sleep(0.1)
    publisher.close()
