"""A running emulator and Microsoft's client for it, both unmodified."""

from __future__ import annotations

import itertools

import pytest
from azure.servicebus import ServiceBusClient

from infra.emulators.servicebus import Emulator, Options, QueueDescription

_numbers = itertools.count()


@pytest.fixture(scope="session")
def emulator():
    with Emulator() as running:
        yield running


@pytest.fixture(scope="session")
def client(emulator):
    with ServiceBusClient.from_connection_string(emulator.connection_string, retry_total=0) as opened:
        yield opened


@pytest.fixture
def queue(emulator):
    """The name of a queue of the test's own; call it with what the queue should be like."""
    made = []

    def make(**settings):
        name = f"queue-{next(_numbers)}"
        emulator.create_queue(name, QueueDescription(**settings))
        made.append(name)
        return name

    yield make
    emulator.clear_faults()
    for name in made:
        emulator.delete_queue(name)


@pytest.fixture
def still():
    """An emulator whose time stands still."""
    with Emulator(
        Options(manual_clock=True, tls=False, queues={"q": QueueDescription(lock_duration_ms=30_000)})
    ) as running:
        yield running
