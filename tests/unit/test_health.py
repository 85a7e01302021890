"""A lane whose engine can't be reached rests, longer each time, until it does its work again."""

from __future__ import annotations

from broker.domain.errors import ErrorCode
from broker.health import LaneHealth

FAULT = ErrorCode.ENGINE_UNREACHABLE


def test_each_fault_in_a_row_doubles_the_rest_up_to_a_minute():
    now = [100.0]
    health = LaneHealth(lambda: now[0])
    rests = []
    for _ in range(8):
        health.fault("a", FAULT)
        started = now[0]
        while health.resting():
            now[0] += 0.5
        rests.append(now[0] - started)
    assert rests == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_faults_of_a_resting_lane_are_the_same_fault():
    now = [100.0]
    health = LaneHealth(lambda: now[0])
    for _ in range(64):
        health.fault("a", FAULT)
    assert health.resting() == {"a": FAULT}
    now[0] += 1.0
    assert health.resting() == {}


def test_one_success_ends_the_rest_and_its_memory():
    now = [100.0]
    health = LaneHealth(lambda: now[0])
    health.fault("a", FAULT)
    now[0] += 1.0
    health.fault("a", FAULT)
    health.success("a")
    assert health.resting() == {}
    health.fault("a", FAULT)
    now[0] += 1.0
    assert health.resting() == {}
