"""A lane whose engine can't be reached rests, longer each time, and comes back by degrees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.database.shared_health import SharedLaneHealth
from broker.domain.errors import ErrorCode
from broker.health import LaneHealth, trusted_slots
from broker.rules.placement.health import LIVE, SLOW, WELL, faulted, is_resting, rest_max_s, succeeded, trust
from tests.unit.builders import NOW_US, FixedClock

FAULT = ErrorCode.ENGINE_UNREACHABLE


class Both:
    """The health of both forms, at one time, told the same."""

    def __init__(self, database) -> None:
        self.clock = FixedClock()
        self.single = LaneHealth(lambda: (self.clock.now_us - NOW_US) / 1e6, jitter=lambda: 1.0)
        self._database = database

    def shared(self) -> SharedLaneHealth:
        return SharedLaneHealth(self._database, self.clock, lambda: 1.0)  # a process that has read nothing yet

    def fault(self, retry_after_s: float = 0.0) -> None:
        self.single.fault("a", FAULT, retry_after_s)
        self.shared().fault("a", FAULT, retry_after_s)

    def success(self) -> None:
        self.single.success("a")
        self.shared().success("a")

    def resting(self) -> bool:
        found, shared = self.single.resting(), self.shared().resting()
        assert found.keys() == shared.keys()
        for lane, rest in found.items():
            assert (rest.away_s, rest.left_s) == pytest.approx((shared[lane].away_s, shared[lane].left_s), abs=1e-3)
        return bool(found)

    def is_on_trial(self) -> bool:
        found = set(self.single.on_trial())
        assert found == set(self.shared().on_trial())
        return bool(found)

    def trust(self) -> float:
        found = self.single.trusts()
        assert self.shared().trusts() == pytest.approx(found)
        return found.get("a", 1.0)


@pytest.fixture
def both(database):
    return Both(database)


def test_each_fault_in_a_row_doubles_the_rest_up_to_four_seconds(both):
    rests = []
    for _ in range(6):
        both.fault()
        started = both.clock.now_us
        while both.resting():
            both.clock.advance(0.5)
        rests.append((both.clock.now_us - started) / 1e6)
    assert rests == [1.0, 2.0, 4.0, 4.0, 4.0, 4.0]


def test_a_lane_that_is_away_for_hours_is_asked_more_seldom(both):
    rests = []
    for away_s in (0.0, 600.0, 1_500.0, 86_400.0):
        both.clock.now_us = NOW_US + round(away_s * 1e6)
        both.fault()
        started = both.clock.now_us
        while both.resting():
            both.clock.advance(0.5)
        rests.append((both.clock.now_us - started) / 1e6)
    assert rests == [1.0, 2.0, 4.0, 8.0]
    assert [rest_max_s(away_s, LIVE) for away_s in (0.0, 600.0, 1_500.0, 86_400.0)] == [4.0, 4.0, 10.0, 60.0]


def test_a_server_that_names_a_time_is_left_alone_for_as_long(both):
    both.fault(2.5)
    both.clock.advance(2.4)
    assert both.resting()
    both.fault(7.0)  # it says so again, of a call that came before
    both.clock.advance(6.9)
    assert both.resting()
    both.fault(0.0)
    both.clock.advance(0.2)
    assert not both.resting()
    assert both.is_on_trial()


def test_a_rest_is_shortened_by_chance_and_never_below_what_the_server_asked_for():
    health = LaneHealth(lambda: 0.0)
    left = set()
    for number in range(50):
        health.fault(f"a{number}", FAULT)
        health.fault(f"b{number}", FAULT, 1.0)
    for lane, rest in health.resting().items():
        assert 0.8 <= rest.left_s <= 1.0
        assert lane.startswith("a") or rest.left_s == 1.0
        left.add(rest.left_s)
    assert len(left) > 10


def test_faults_of_a_resting_lane_are_the_same_fault(both):
    for _ in range(64):
        both.fault()
    assert both.resting()
    both.clock.advance(1.0)
    assert not both.resting()


def test_a_lane_is_on_trial_after_its_rest_and_one_success_ends_it(both):
    both.fault()
    assert both.trust() == 0.0
    assert not both.is_on_trial()
    both.clock.advance(1.0)
    assert both.is_on_trial()
    both.clock.advance(100.0)
    assert both.is_on_trial()  # nobody tried it yet
    both.fault()
    both.success()
    assert not both.resting()
    assert not both.is_on_trial()


def test_a_lane_that_was_away_for_a_moment_is_back_in_a_quarter_of_it(both):
    both.fault()
    both.clock.advance(8.0)
    both.success()
    trusted = []
    for _ in range(5):
        trusted.append(both.trust())
        both.clock.advance(0.5)
    assert trusted == pytest.approx([0.25, 0.4375, 0.625, 0.8125, 1.0])
    both.success()
    assert both.trust() == 1.0
    both.fault()
    both.clock.advance(1.0)
    assert not both.resting()  # the faults of before are forgotten


def test_a_lane_that_was_away_for_long_comes_back_within_five_seconds(both):
    for _ in range(30):
        both.fault()
        both.clock.advance(60.0)
    both.success()
    both.clock.advance(2.5)
    assert both.trust() == pytest.approx(0.625)
    both.clock.advance(2.5)
    assert both.trust() == 1.0


def test_a_fault_on_the_way_back_counts_with_those_before(both):
    for _ in range(2):
        both.fault()
        both.clock.advance(2.0)
    both.success()
    both.clock.advance(0.5)
    both.fault()
    both.clock.advance(3.9)
    assert both.resting()
    both.clock.advance(0.1)
    assert not both.resting()


def test_one_broken_engine_among_many_hardly_slows_the_lane(both):
    """Its neighbours' successes end each rest, and what was away for a tenth of a second is back in a twentieth."""
    lost_s = 0.0
    for _ in range(10):
        both.fault()
        for _ in range(10):
            both.clock.advance(0.1)
            both.success()
            lost_s += 0.1 * (1.0 - both.trust())
    assert lost_s < 0.1 * 10


def test_some_slots_are_left_unless_a_lane_rests():
    trusts = {"rests": 0.0, "tries": 0.25, "returns": 0.7}
    slots = {"well": 8, "rests": 8, "tries": 2, "returns": 8, "gone": 0}
    assert trusted_slots(slots, trusts) == {"well": 8, "rests": 0, "tries": 1, "returns": 5, "gone": 0}
    assert trusted_slots({"gone": 0}, {"gone": 0.25}) == {"gone": 0}


def test_the_slow_terms_return_in_eight_minutes():
    one = faulted(WELL, 0.0, SLOW)
    assert trust(one, 59.0, SLOW) == 0.0
    two = faulted(one, 600.0, SLOW)
    assert two.rests_until_s == 600.0 + 120.0
    back = succeeded(two, 720.0, SLOW)
    assert trust(back, 720.0, SLOW) == 0.25
    assert trust(back, 720.0 + 240.0, SLOW) == 0.625
    assert succeeded(back, 720.0 + 480.0, SLOW) == WELL


EVENTS = st.lists(st.tuples(st.floats(0.0, 200.0), st.sampled_from(["fault", "success", "look"])), max_size=60)


@given(EVENTS, st.sampled_from([LIVE, SLOW]))
def test_whatever_happens_a_lane_is_never_left_for_long(events, terms):
    health, now_s = WELL, 0.0
    for after_s, what in events:
        before = trust(health, now_s, terms)
        now_s += after_s
        if what == "look":
            assert trust(health, now_s, terms) >= before  # time alone never takes anything away
            continue
        was_resting = is_resting(health, now_s)
        health = (faulted if what == "fault" else succeeded)(health, now_s, terms)
        part = trust(health, now_s, terms)
        assert 0.0 <= part <= 1.0
        assert (part == 0.0) == is_resting(health, now_s)
        assert health.rests_until_s <= now_s + terms.rest_longest_s
        if what == "fault":
            assert part == 0.0
            assert was_resting or health.rest_s >= terms.rest_s
        else:
            assert part >= terms.first_trust
    # Tried after its rest, and doing its work, it is well again within the longest return.
    now_s = max(now_s, health.rests_until_s)
    health = succeeded(health, now_s, terms)
    now_s += 1.001 * terms.return_max_s
    assert trust(health, now_s, terms) == 1.0
    assert succeeded(health, now_s, terms) == WELL
