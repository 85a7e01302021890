"""What several threads look up in the database: one that is slow there holds up no other."""

from __future__ import annotations

import threading
import time

import pytest

from broker.bootstrap.stored_keys import StoredKeys
from broker.database import shared_health
from broker.database.shared_health import SharedLaneHealth
from broker.domain.errors import BrokerError, ErrorCode
from tests.unit.builders import FixedClock


class Slow:
    """A database whose reads wait, or fail, once a test says so."""

    def __init__(self, database) -> None:
        self._database = database
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.reading = threading.Event()
        self.failures: list[Exception] = []
        self.write = database.write

    def read(self, work):
        self.reading.set()
        assert self.goes_on.wait(10)
        if self.failures:
            raise self.failures.pop()
        return self._database.read(work)

    def hold(self) -> None:
        self.reading.clear()
        self.goes_on.clear()


@pytest.fixture
def slow(database):
    return Slow(database)


def in_time(call) -> object:
    """What it returns, which must not take long."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(call()), daemon=True)
    thread.start()
    thread.join(3)
    assert answers, "it waited for another thread's look"
    return answers[0]


def test_a_slow_look_at_the_lanes_health_holds_up_nobody_else(slow, monkeypatch):
    monkeypatch.setattr(shared_health, "_FRESH_SECONDS", 0.05)
    health = SharedLaneHealth(slow, FixedClock())
    health.fault("sick", ErrorCode.ENGINE_UNREACHABLE)
    assert set(health.resting()) == {"sick"}
    time.sleep(0.1)
    monkeypatch.setattr(shared_health, "_FRESH_SECONDS", 60.0)
    health._read_at = float("-inf")
    slow.hold()
    looking = threading.Thread(target=health.resting, daemon=True)
    looking.start()
    assert slow.reading.wait(5)
    assert set(in_time(health.resting)) == {"sick"}
    assert in_time(health.trusts) == {"sick": 0.0}
    slow.goes_on.set()
    looking.join(5)


def test_a_look_that_fails_is_taken_again_by_the_next(slow):
    health = SharedLaneHealth(slow, FixedClock())
    slow.failures = [BrokerError("away")]
    with pytest.raises(BrokerError):
        health.resting()
    assert health.resting() == {}


def test_a_fault_amid_an_older_look_is_known_at_once(slow):
    health = SharedLaneHealth(slow, FixedClock())
    assert health.resting() == {}
    other = SharedLaneHealth(slow, FixedClock())
    other.fault("sick", ErrorCode.ENGINE_UNREACHABLE)
    assert set(other.resting()) == {"sick"}
    assert set(SharedLaneHealth(slow, FixedClock()).resting()) == {"sick"}


def test_a_slow_look_for_a_stranger_holds_up_no_other_stranger(slow):
    keys = StoredKeys(slow)
    slow.hold()
    looking = threading.Thread(target=keys._look_up, args=("stranger",), daemon=True)
    looking.start()
    assert slow.reading.wait(5)
    assert in_time(lambda: keys._look_up("another") or "unknown") == "unknown"
    slow.goes_on.set()
    looking.join(5)
