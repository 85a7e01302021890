"""What a driver holds: as long as it may have to give it back, and no longer."""

from __future__ import annotations

import pytest

from broker.bus.held_leases import HeldLeases


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def held(clock):
    return HeldLeases(clock)


def test_what_could_not_be_settled_is_forgotten_a_minute_after_its_end(held, clock):
    held.add("a", ["never settled", "renewed"], 10)
    held.add("b", ["another queue's"], 1_000)
    for _ in range(20):
        clock.now += 5
        held.extend("a", ["renewed"], 10)
    held.add("a", ["fresh"], 10)
    assert held.take_all() == {"a": ["renewed", "fresh"], "b": ["another queue's"]}
    assert len(held) == 0


def test_a_thousand_that_are_never_settled_stay_no_thousand(held, clock):
    for number in range(1_000):
        held.add("a", [number], 10)
        clock.now += 1
    assert len(held) <= 10 + 2 * 60 + 1


def test_an_ended_lease_is_told_from_one_that_was_settled(held, clock):
    held.add("a", ["late", "settled", "in time"], 10)
    held.let_go("a", ["settled"])
    held.extend("a", ["in time"], 30)
    clock.now += 12
    assert held.ended("a", ["late", "settled", "in time", "never seen"]) == {"late": pytest.approx(2.0)}
    assert held.ended("b", ["late"]) == {}


def test_what_was_settled_while_it_was_renewed_stays_settled(held):
    held.add("a", ["one", "two"], 10)
    held.let_go("a", ["one"])
    held.extend("a", ["one", "two"], 10)
    assert held.take_all() == {"a": ["two"]}
