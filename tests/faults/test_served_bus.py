"""The served form when its bus forgets everything or dies, or its network fails: short campaigns of `tests.harness`."""

from __future__ import annotations

import pytest

from tests.harness.bus_loss import BusLossTerms, run_bus_loss
from tests.harness.hardships import NetworkTerms, run_network

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("bus", ["amqp", "redis", "pubsub", "servicebus", "ociqueue"])
def test_a_full_bus_that_forgets_or_is_killed_loses_and_doubles_nothing(bus):
    report = run_bus_loss(BusLossTerms(bus=bus, in_flight=1_000, shard_jobs=40, work_seconds=12.0, shard_seconds=5.0))
    report.print()
    assert report.faults == []


def test_a_network_that_cuts_delays_and_swallows_loses_and_doubles_nothing():
    report = run_network(NetworkTerms(jobs=1_200, times=5, fault_seconds=4.0, pause_seconds=1.0, bus="redis"))
    report.print()
    assert report.faults == []
