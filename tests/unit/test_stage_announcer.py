"""What lanes should hold, as an event: a change is told, of each lane the newest alone, and the planner never waits."""

from __future__ import annotations

import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.bus.driver import BusUnavailable, MessageRefused, PublishError
from broker.bus.envelope import Kind, seal
from broker.bus.publisher import Publisher
from broker.database import plans, tables
from broker.database.plans import LanePlan
from broker.domain.desired import DESIRED_QUEUE, LaneDesired
from broker.sdk.desired import DesiredEvents
from broker.signing import KeyRing, KeyRole, PublicKey
from broker.stages.announcer import Announcer
from tests.unit.builders import NOW_US, SECOND_US, a_signer


class Stand:
    """The planner's side is played by the test; the bus is in memory."""

    def __init__(self, world):
        self.world = world
        self.url = f"lanemem://desired-{uuid.uuid4().hex}"
        self.signer, key = a_signer("broker")
        self.lane_signer, lane_key = a_signer("lane")
        keys = {
            "broker": PublicKey(KeyRole.BROKER, "broker", key.public_key()),
            "lane": PublicKey(KeyRole.LANE, "lane-a", lane_key.public_key()),
        }
        self.publisher = Publisher(self.url)
        self.announcer = self.new_announcer(self.publisher)
        self.events = DesiredEvents(self.url, KeyRing(keys), clock=world.clock)
        self.generation = 0

    def new_announcer(self, publisher):
        parts = {"database": self.world.database, "clock": self.world.clock}
        return Announcer(publisher=publisher, signer=self.signer, **parts)

    def plan(self, **desired):
        self.generation += 1
        words = [
            LanePlan(lane=lane.replace("_", "-"), desired=count, usable=1, ready=1, speeds={})
            for lane, count in desired.items()
        ]
        self.world.database.write(
            lambda connection: plans.write_lane_plans(connection, words, self.generation, self.world.clock())
        )

    def heard(self):
        found = {one.lane: one.desired for one in self.events.receive(0.5)}
        return found | {one.lane: one.desired for one in self.events.receive(0.05)}

    def close(self):
        self.events.close()
        self.publisher.close()


@pytest.fixture
def stand(world):
    made = Stand(world)
    yield made
    made.close()


def test_a_change_is_told_once_and_the_same_number_never(stand):
    stand.plan(lane_a=2, lane_b=0)
    assert stand.announcer.step()
    heard = {one.lane: one for one in stand.events.receive(5)}
    assert heard["lane-a"] == LaneDesired("lane-a", 2, 1, 1, NOW_US)
    assert (heard["lane-b"].desired, len(heard)) == (0, 2)
    stand.plan(lane_a=2, lane_b=0)
    assert not stand.announcer.step()
    stand.plan(lane_a=3, lane_b=0)
    assert stand.announcer.step()
    assert stand.heard() == {"lane-a": 3}
    assert stand.world.count(tables.desired_change) == 0


class Unreliable:
    """Fails in this way, while it does."""

    def __init__(self, real, error):
        self.real, self.error, self.calls = real, error, 0

    def publish_events(self, queue, envelopes):
        self.calls += 1
        if isinstance(self.error, PublishError):
            self.real.publish_events(queue, [one for place, one in enumerate(envelopes) if place])
        if self.error is not None:
            raise self.error
        self.real.publish_events(queue, envelopes)


@pytest.mark.parametrize(
    "error", [BusUnavailable("away"), PublishError({0: MessageRefused("no")}), OSError("x")], ids=str
)
def test_a_bus_that_is_away_holds_up_nobody_and_brings_the_newest_alone(stand, error, monkeypatch):
    publisher = Unreliable(stand.publisher, error)
    shaky = stand.new_announcer(publisher)
    stand.plan(lane_a=1, lane_b=1)
    shaky.step()
    for count in range(2, 6):
        stand.plan(lane_a=count)
        assert not shaky.step()  # it rests
    assert publisher.calls == 1
    assert stand.heard() == ({"lane-b": 1} if isinstance(error, PublishError) else {})
    publisher.error = None
    monkeypatch.setattr(shaky, "_rests_until", 0.0)
    assert shaky.step()
    assert stand.heard().get("lane-a") == 5
    assert (publisher.calls, stand.world.count(tables.desired_change)) == (2, 0)


def test_a_crash_before_the_rows_are_forgotten_tells_twice_and_is_heard_once(stand, monkeypatch):
    def die(*_arguments, **_terms):
        raise KeyboardInterrupt

    stand.plan(lane_a=2)
    with monkeypatch.context() as patched:
        patched.setattr(stand.world.database, "write", die)
        with pytest.raises(KeyboardInterrupt):
            stand.announcer.step()
    assert stand.heard() == {"lane-a": 2}
    assert stand.announcer.step()
    assert stand.heard() == {}


def test_what_changed_while_it_was_told_is_told_too(stand):
    class Slow(Unreliable):
        def publish_events(self, queue, envelopes):
            self.real.publish_events(queue, envelopes)
            if not self.calls:
                self.calls += 1
                stand.plan(lane_a=7)

    slow = stand.new_announcer(Slow(stand.publisher, None))
    stand.plan(lane_a=2)
    slow.step()
    assert stand.world.count(tables.desired_change) == 1
    slow.step()
    assert stand.heard() == {"lane-a": 7}


def test_only_the_brokers_word_of_today_counts(stand):
    word = LaneDesired("lane-a", 99, 0, 9, NOW_US)
    terms = {"now_us": NOW_US, "valid_us": SECOND_US}
    forged = seal(stand.lane_signer, Kind.EVENT, "lane-a", word, **terms)
    wrong_kind = seal(stand.signer, Kind.REPLY, "lane-a", word, **terms)
    old = seal(stand.signer, Kind.DESIRED, "lane-a", word, now_us=NOW_US - 2 * SECOND_US, valid_us=SECOND_US)
    stand.publisher.publish_events(DESIRED_QUEUE, [forged, wrong_kind, old, b"no envelope"])
    stand.plan(lane_a=1)
    stand.announcer.step()
    assert stand.heard() == {"lane-a": 1}


PLANS = st.tuples(st.sampled_from(["lane_a", "lane_b"]), st.integers(0, 3), st.booleans())


@given(numbers=st.lists(PLANS, max_size=12))
def test_whoever_listens_ends_with_what_the_plan_says(make_world, numbers):
    stand = Stand(make_world())
    believed = {}
    try:
        for lane, count, tells in numbers:
            stand.plan(**{lane: count})
            if tells:
                stand.announcer.step()
        stand.announcer.step()
        said = {lane: one.desired for lane, one in stand.world.read(plans.lane_plans).items()}
        deadline = time.monotonic() + 5
        while believed != said and time.monotonic() < deadline:
            believed |= {one.lane: one.desired for one in stand.events.receive(0.05)}
        believed |= {one.lane: one.desired for one in stand.events.receive(0.01)}
        assert believed == said
    finally:
        stand.close()
