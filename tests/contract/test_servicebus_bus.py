"""Azure Service Bus against the contract, played by our emulator of it, and what the driver promises beyond."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from azure.servicebus import ServiceBusClient, ServiceBusMessage

from broker.bus.driver import BusUnavailable, MessageRefused, MessageTooLarge, PublishError, QueueMissing
from broker.bus.drivers.servicebus import ServiceBusDriver, ServiceBusOptions
from broker.bus.topology import open_connection
from infra.emulators.servicebus import KEY, KEY_NAME, Action, Emulator, Fault, Options, Point, QueueDescription
from tests.contract.bus_contract import BusContract
from tests.contract.bus_under_test import Bus, Features
from tests.contract.worker_contract import WorkerContract

ROOT = Path(__file__).parents[2]
LEASE_SECONDS = 2.0
MESSAGE_BYTES_MAX = 200_000


class Process:
    """The emulator as a process of its own, with a journal, so that it can die and come back."""

    def __init__(self, journal):
        self.port = 0
        self._journal = journal
        self._process = None

    def start(self):
        command = [sys.executable, "-m", "infra.emulators.servicebus", "--no-tls", "--port", str(self.port)]
        command += ["--journal", str(self._journal)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
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


def url_of(port):
    return f"laneasb://{KEY_NAME}:{KEY}@127.0.0.1:{port}/?emulator=true"


def client_of(port):
    text = f"Endpoint=sb://127.0.0.1:{port};SharedAccessKeyName={KEY_NAME};SharedAccessKey={KEY};"
    return ServiceBusClient.from_connection_string(f"{text}UseDevelopmentEmulator=true;")


def features_of(port, **more):
    def inject(queue, data):
        with client_of(port) as client, client.get_queue_sender(queue) as sender:
            sender.send_messages(ServiceBusMessage(data))

    def dead_letters(queue):
        with client_of(port) as client, client.get_queue_receiver(queue, sub_queue="deadletter") as receiver:
            found = receiver.peek_messages(100, sequence_number=1)
            return [(b"".join(each.body), each.dead_letter_reason) for each in found]

    return Features(
        url=url_of(port),
        options={"create": True, "lease_seconds": LEASE_SECONDS, "max_message_bytes": MESSAGE_BYTES_MAX},
        lease_seconds=LEASE_SECONDS,
        message_bytes_max=MESSAGE_BYTES_MAX,
        bounded_url=f"{url_of(port)}&max_size_megabytes=1",  # the service bounds queues by their bytes
        bounded_message=b"m" * 150_000,
        unreachable_url=url_of(1),
        inject=inject,
        dead_letters=dead_letters,
        three_attempts={"max_attempts": 3},
        **more,
    )


@pytest.fixture(scope="module")
def server():
    with Emulator(Options(tls=False)) as running:
        yield running


class PatientBus(Bus):
    """The SDK takes half a second to open a link, more than some cases grant: a tap waits for it."""

    def tap(self, queue, *arguments, **options):
        tap = super().tap(queue, *arguments, **options)
        deadline = time.monotonic() + 5
        while tap.connection.transport.driver._station(queue.name).receiver is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return tap


class OnServiceBus:
    @pytest.fixture
    def bus(self, features):
        under_test = PatientBus(features)
        yield under_test
        under_test.close()

    @pytest.fixture
    def features(self, server):
        return features_of(server.port)

    @pytest.fixture
    def private_features(self, tmp_path):
        process = Process(tmp_path / "journal").start()

        def restart():
            process.kill()
            process.start()

        with Emulator(Options(tls=False)) as elsewhere:
            yield features_of(process.port, isolated_url=url_of(elsewhere.port), restart=restart)
        process.kill()


class TestServiceBusBus(OnServiceBus, BusContract):
    """All cases of a bus."""


class TestServiceBusWorker(OnServiceBus, WorkerContract):
    """All cases of a worker."""


def driver_of(server, **options):
    return ServiceBusDriver(f"127.0.0.1:{server.port}", (KEY_NAME, KEY), ServiceBusOptions(emulator=True, **options))


@pytest.fixture
def queue(server, request):
    name = request.node.name[:100].replace("[", "-").replace("]", "")
    server.create_queue(name, QueueDescription(lock_duration_ms=1_000, max_size_megabytes=1))
    yield name
    server.clear_faults()
    server.delete_queue(name)


@pytest.fixture
def driver(server):
    opened = driver_of(server, lease_seconds=1.0)
    yield opened
    opened.close()


def test_a_lease_that_is_not_renewed_ends_and_the_attempt_is_counted(driver, queue):
    driver.publish(queue, [b"m"])
    (first,) = driver.receive(queue, 5, 5)
    time.sleep(1.1)
    (second,) = driver.receive(queue, 5, 5)
    assert (first.attempts, second.attempts) == (1, 2)
    assert list(driver.ack(queue, [first.handle])) == [first.handle]
    assert driver.ack(queue, [second.handle]) == {}
    assert driver.size(queue) == 0


def test_an_extended_lease_stays(driver, queue):
    driver.publish(queue, [b"m"])
    (lease,) = driver.receive(queue, 1, 5)
    for _ in range(3):
        time.sleep(0.6)
        assert driver.extend(queue, [lease.handle], 1.0) == {}
    assert driver.ack(queue, [lease.handle]) == {}


def test_a_dead_letter_has_its_reason(driver, server, queue):
    driver.publish(queue, [b"m"])
    leases = driver.receive(queue, 1, 5)
    driver.dead_letter(queue, leases, "undecodable: DecodeError")
    assert features_of(server.port).dead_letters(queue) == [(b"m", "undecodable: DecodeError")]


def test_more_than_fits_a_batch_goes_in_several(driver, queue):
    bodies = [bytes([number]) * 60_000 for number in range(12)]
    driver.publish(queue, bodies)
    got = []
    while len(got) < 12:
        leases = driver.receive(queue, 100, 5)
        got += [lease.data for lease in leases]
        driver.ack(queue, [lease.handle for lease in leases])
    assert got == bodies


def test_a_message_that_is_too_large_is_named_and_the_others_are_sent(driver, queue):
    with pytest.raises(PublishError) as caught:
        driver.publish(queue, [b"1", b"x" * 300_000, b"2"])
    assert list(caught.value.errors) == [1]
    assert isinstance(caught.value.errors[1], MessageTooLarge)
    assert driver.size(queue) == 2


def test_a_full_queue_pushes_back(driver, queue):
    with pytest.raises(PublishError, match="full") as caught:
        driver.publish(queue, [b"x" * 200_000] * 8)
    assert 1 <= len(caught.value.errors) < 8
    assert all(isinstance(error, MessageRefused) for error in caught.value.errors.values())
    assert driver.size(queue) == 8 - len(caught.value.errors)


def test_a_settlement_whose_answer_is_lost_is_carried_out_once(driver, server, queue):
    driver.publish(queue, [b"1", b"2"])
    (first,) = driver.receive(queue, 1, 5)
    server.add_fault(Fault(Point.SETTLE, Action.DROP_AFTER, queue))
    driver.ack(queue, [first.handle])  # done, though the SDK can only find that its lock is gone
    (second,) = driver.receive(queue, 5, 5)
    assert second.data == b"2"
    driver.ack(queue, [second.handle])
    assert driver.size(queue) == 0


def test_locks_outlive_the_connection(driver, server, queue):
    server.call(lambda service: service.namespace.update(0, queue, QueueDescription(lock_duration_ms=10_000)))
    driver.publish(queue, [b"1", b"2"])
    leases = driver.receive(queue, 1, 5) + driver.receive(queue, 1, 5)
    server.drop_connections()
    driver.extend(queue, [lease.handle for lease in leases], 1.0)
    assert driver.ack(queue, [lease.handle for lease in leases]) == {}
    assert server.state()["queues"][queue]["active"] == 0


def test_what_was_published_before_a_cut_is_known(driver, server, queue):
    driver.publish(queue, [b"0"])
    server.add_fault(Fault(Point.SEND, Action.REFUSE, queue, "amqp:internal-error", "out of order", times=9, skip=1))
    with pytest.raises(PublishError) as caught:
        driver.publish(queue, [b"x" * 200_000, b"y" * 200_000])
    assert list(caught.value.errors) == [1]
    assert isinstance(caught.value.errors[1], BusUnavailable)


def test_two_queues_do_not_wait_for_each_other(driver, server, queue):
    other = f"{queue}-2"
    server.create_queue(other)
    driver.publish(queue, [b"1"])
    driver.receive(other, 1, 0.1)
    waiting = threading.Thread(target=driver.receive, args=(other, 1, 3.0))
    waiting.start()
    driver.receive(queue, 1, 5)
    assert waiting.is_alive()
    driver.wake()
    waiting.join(1)
    assert not waiting.is_alive()
    server.delete_queue(other)


def test_a_missing_queue_is_named(driver):
    for call in (
        lambda: driver.receive("nowhere", 1, 0),
        lambda: driver.publish("nowhere", [b"x"]),
        lambda: driver.ensure("nowhere"),
        lambda: driver.size("nowhere"),
    ):
        with pytest.raises(QueueMissing, match="'nowhere' doesn't exist"):
            call()
    driver.delete("nowhere")


def test_ensuring_makes_a_queue_only_where_that_was_asked_for(server):
    maker = driver_of(server, create=True, lease_seconds=30)
    maker.ensure("made")
    maker.ensure("made")
    description = server.call(lambda service: service.namespace.entry("made").queue.description)
    assert (description.lock_duration_ms, description.max_delivery_count) == (30_000, 2_000)
    maker.publish("made", [b"1", b"2"])
    assert maker.purge("made") == 2
    maker.delete("made")
    maker.close()


def test_a_closed_driver_gives_back_and_refuses(server, queue):
    driver = driver_of(server)
    driver.publish(queue, [b"1"])
    driver.receive(queue, 1, 5)
    driver.close()
    driver.close()
    assert server.state()["queues"][queue]["locked"] == 0
    with pytest.raises(BusUnavailable):
        driver.publish(queue, [b"2"])


def test_a_wrong_key_is_unavailable(server, queue):
    driver = ServiceBusDriver(f"127.0.0.1:{server.port}", (KEY_NAME, "wrong"), ServiceBusOptions(emulator=True))
    with pytest.raises(BusUnavailable):
        driver.publish(queue, [b"x"])
    assert driver.size(queue) is None
    driver.close()


def test_tls_to_an_endpoint_of_its_own(queue):
    with Emulator(Options(queues={queue: QueueDescription()})) as emulator:
        options = ServiceBusOptions(endpoint=f"sb://127.0.0.1:{emulator.port}", ca_file=str(emulator.certificate))
        driver = ServiceBusDriver("contoso.servicebus.windows.net", (KEY_NAME, KEY), options)
        driver.ensure(queue)
        driver.publish(queue, [b"secret"])
        assert [lease.data for lease in driver.receive(queue, 1, 5)] == [b"secret"]
        driver.close()


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("laneasb:///x", "namespace"),
        ("laneasb://n:k@h/?colour=red", "colour"),
        ("laneasb://n:k@h/?lease_seconds=x", "float"),
    ],
)
def test_a_url_that_makes_no_sense(url, word):
    with pytest.raises(ValueError, match=word):
        open_connection(url).connect()


@pytest.mark.parametrize("action", [Action.LOSE, Action.DELAY])
def test_a_settlement_whose_answer_does_not_come_holds_up_no_other_lock(server, action):
    server.create_queue("slow", QueueDescription(lock_duration_ms=6_000))
    driver = driver_of(server, lease_seconds=6)
    driver.publish("slow", [b"1", b"2"])
    first, second = driver.receive("slow", 1, 5) + driver.receive("slow", 1, 5)
    server.add_fault(Fault(Point.SETTLE, action, "slow", delay_seconds=4.0))
    began = time.monotonic()
    lost = driver.ack("slow", [first.handle])
    assert time.monotonic() - began < 4  # the SDK by itself would wait a minute
    assert list(lost) == [first.handle]  # which is all that it can find out, and harmless: the shard was claimed once
    assert driver.extend("slow", [second.handle], 6.0) == {}
    time.sleep(3)  # a late answer confuses nobody
    assert driver.ack("slow", [second.handle]) == {}
    assert server.state()["queues"]["slow"]["active"] == 0
    driver.close()
    server.delete_queue("slow")


def test_a_renewal_whose_answer_is_lost_is_asked_for_again(driver, server, queue):
    server.call(lambda service: service.namespace.update(0, queue, QueueDescription(lock_duration_ms=10_000)))
    driver.publish(queue, [b"m"])
    (lease,) = driver.receive(queue, 1, 5)
    server.add_fault(Fault(Point.MANAGEMENT, Action.LOSE, queue))
    assert driver.extend(queue, [lease.handle], 1.0) == {}
    assert driver.ack(queue, [lease.handle]) == {}


def test_a_message_is_held_for_hours(monkeypatch):
    """Locks, and the tokens that links live by, end many times meanwhile; the clients' clock goes with the server's."""
    settings = Options(tls=False, manual_clock=True, queues={"q": QueueDescription(lock_duration_ms=60_000)})
    with Emulator(settings) as emulator:
        driver = driver_of(emulator, lease_seconds=60)
        driver.publish("q", [b"long"])
        (lease,) = driver.receive("q", 1, 5)
        real, passed = time.time, 0.0
        monkeypatch.setattr(time, "time", lambda: real() + passed)
        for _ in range(200):
            passed += 40
            emulator.advance(40)
            assert driver.extend("q", [lease.handle], 60.0) == {}
        assert passed > 2 * 3_600
        assert driver.receive("q", 1, 0.1) == []
        assert driver.ack("q", [lease.handle]) == {}
        assert emulator.state()["queues"]["q"]["active"] == 0
        driver.close()
