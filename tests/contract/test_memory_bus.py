"""The in-memory bus against the contract, and what it promises beyond."""

from __future__ import annotations

import threading
import time

import pytest

from broker.bus.driver import BusUnavailable, PublishError, QueueMissing
from broker.bus.drivers.memory import MemoryDriver, MemoryOptions, QueueFull
from tests.contract.bus_contract import BusContract
from tests.contract.bus_under_test import Features
from tests.contract.worker_contract import WorkerContract

NAME = "contract"
LEASE_SECONDS = 1.0
MESSAGE_BYTES_MAX = 1_000_000
OPTIONS = MemoryOptions(lease_seconds=LEASE_SECONDS, max_message_bytes=MESSAGE_BYTES_MAX)


def _inject(queue: str, data: bytes) -> None:
    MemoryDriver(NAME, OPTIONS).publish(queue, [data])


def _dead_letters(queue: str) -> list[tuple[bytes, str]]:
    return [(letter.data, letter.reason) for letter in MemoryDriver(NAME, OPTIONS).dead_letters(queue)]


FEATURES = Features(
    url=f"lanemem://{NAME}?lease_seconds={LEASE_SECONDS}&max_message_bytes={MESSAGE_BYTES_MAX}",
    options={"receive_errors_max": 2},
    lease_seconds=LEASE_SECONDS,
    bounded_url="lanemem://bounded?max_messages=5",
    isolated_url="lanemem://elsewhere",
    other_processes=False,
    message_bytes_max=MESSAGE_BYTES_MAX,
    inject=_inject,
    dead_letters=_dead_letters,
    three_attempts={"max_attempts": 3},
    latency_ms_max=20.0,
)


class OnMemory:
    @pytest.fixture
    def features(self):
        return FEATURES

    @pytest.fixture
    def private_features(self):
        return FEATURES


class TestMemoryBus(OnMemory, BusContract):
    """All cases of a bus."""


class TestMemoryWorker(OnMemory, WorkerContract):
    """All cases of a worker."""


@pytest.fixture
def driver(request):
    return MemoryDriver(f"driver-{request.node.name}", MemoryOptions(lease_seconds=0.15, max_messages=3))


def test_a_lease_that_is_not_renewed_ends_and_the_attempt_is_counted(driver):
    driver.publish("q", [b"m"])
    (first,) = driver.receive("q", 5, 0)
    assert driver.receive("q", 5, 0.05) == []
    (second,) = driver.receive("q", 5, 1.0)
    assert (first.attempts, second.attempts) == (1, 2)
    assert list(driver.ack("q", [first.handle])) == [first.handle]
    assert driver.ack("q", [second.handle]) == {}


def test_an_extended_lease_stays(driver):
    driver.publish("q", [b"m"])
    (lease,) = driver.receive("q", 1, 0)
    assert driver.extend("q", [lease.handle, 999], 5.0).keys() == {999}
    assert driver.receive("q", 1, 0.2) == []


def test_a_full_queue_pushes_back_and_names_what_it_refused(driver):
    with pytest.raises(PublishError) as caught:
        driver.publish("q", [b"1", b"2", b"3", b"4", b"5"])
    assert list(caught.value.errors) == [3, 4]
    assert all(isinstance(error, QueueFull) for error in caught.value.errors.values())
    assert driver.size("q") == 3
    (lease,) = driver.receive("q", 1, 0)
    driver.ack("q", [lease.handle])
    driver.publish("q", [b"4"])


def test_messages_given_back_keep_their_place(driver):
    driver.publish("q", [b"1", b"2", b"3"])
    leases = driver.receive("q", 2, 0)
    driver.release("q", [lease.handle for lease in leases], 0)
    assert [lease.data for lease in driver.receive("q", 3, 0)] == [b"1", b"2", b"3"]


def test_a_message_given_back_with_a_delay_waits(driver):
    driver.publish("q", [b"1"])
    (lease,) = driver.receive("q", 1, 0)
    driver.release("q", [lease.handle], 0.08)
    assert driver.receive("q", 1, 0.03) == []
    assert len(driver.receive("q", 1, 1.0)) == 1


def test_a_receive_of_several_queues_takes_from_each(driver):
    driver.publish("a", [b"a1", b"a2", b"a3"])
    driver.publish("b", [b"b1"])
    assert [lease.data for lease in driver.receive_any(["a", "b"], 2, 0)] == [b"a1", b"b1"]


def test_wake_ends_a_receive(driver):
    driver.ensure("q")
    began = time.monotonic()
    threading.Timer(0.05, driver.wake).start()
    assert driver.receive("q", 1, 5.0) == []
    assert time.monotonic() - began < 1.0


def test_a_closed_driver_gives_back_and_refuses(driver):
    driver.publish("q", [b"1"])
    driver.receive("q", 1, 0)
    driver.close()
    driver.close()
    with pytest.raises(BusUnavailable):
        driver.publish("q", [b"2"])
    assert driver.size("q") == 1


def test_a_missing_queue_is_named(driver):
    with pytest.raises(QueueMissing, match="'nowhere' doesn't exist"):
        driver.receive("nowhere", 1, 0)
