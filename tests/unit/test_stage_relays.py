"""A relay for each bus: one that hangs delays no other, and its rows fill no other's page."""

from __future__ import annotations

import threading

import pytest

from broker.database.tables import outbox
from broker.domain.job import Constraints
from broker.stages import relay
from broker.stages.relay import ROWS_PER_STEP, Relay, lanes_of_each_bus
from broker.wakeups import Topic, Wakeups
from tests.unit.builders import a_lane, a_signer, some_lines

_JOBS = ROWS_PER_STEP + 8


class Bus:
    """Takes what it gets; while `goes_on` is clear it hangs, as one whose packets are dropped."""

    def __init__(self) -> None:
        self.goes_on, self.called = threading.Event(), threading.Event()
        self.goes_on.set()
        self.taken: dict[str, int] = {}

    def publish_shards(self, queue, envelopes):
        self.called.set()
        if not self.goes_on.wait(30):
            raise TimeoutError
        self.taken[queue] = self.taken.get(queue, 0) + len(envelopes)


@pytest.fixture
def two_buses(make_world):
    """Two lanes on a bus that hangs and one on a bus that is well; the older rows are the sick bus's, over a page."""
    lanes = [a_lane("sick-1", shard_jobs_max=1, slots=_JOBS), a_lane("sick-2", slots=2), a_lane("well", slots=2)]
    world = make_world(*lanes)
    for lane, jobs in (("sick-1", _JOBS), ("sick-2", 1), ("well", 1)):
        world.take_in(some_lines(jobs, lane), constraints=Constraints(lanes=(lane,)))
        while world.dispatch():
            pass
    sick, well = Bus(), Bus()
    sick.goes_on.clear()
    return world, {"sick-1": sick, "sick-2": sick, "well": well}


def _relays(world, publishers):
    return [
        Relay(world.database, lanes, publishers, a_signer()[0], world.clock)
        for lanes in lanes_of_each_bus(world.lanes, publishers)
    ]


def _waiting(world):
    lanes = [row.lane for row in world.rows(outbox)]
    return {lane: lanes.count(lane) for lane in set(lanes)}


def test_lanes_with_one_publisher_are_on_one_bus():
    lanes = [a_lane("a"), a_lane("b"), a_lane("c"), a_lane("d")]
    one, two = Bus(), Bus()
    groups = lanes_of_each_bus(lanes, {"a": one, "b": two, "c": one, "d": two})
    assert [[lane.name for lane in group] for group in groups] == [["a", "c"], ["b", "d"]]


def test_a_bus_that_hangs_delays_no_other_though_its_rows_are_older_and_more_than_a_page(two_buses):
    world, publishers = two_buses
    assert _waiting(world) == {"sick-1": _JOBS, "sick-2": 1, "well": 1}
    sick, well = _relays(world, publishers)
    thread = threading.Thread(target=sick.step)
    thread.start()
    try:
        assert publishers["sick-1"].called.wait(10)
        assert well.step() == 1
        assert publishers["well"].taken == {"lane.well.shards": 1}
        assert _waiting(world) == {"sick-1": _JOBS, "sick-2": 1}
        assert well.step() == 0  # it neither reads nor sends the others'
    finally:
        publishers["sick-1"].goes_on.set()
        thread.join(30)
    assert _waiting(world) == {"sick-1": _JOBS - ROWS_PER_STEP, "sick-2": 1}
    assert sick.step() == 9
    assert publishers["sick-1"].taken == {"lane.sick-1.shards": _JOBS, "lane.sick-2.shards": 1}
    assert _waiting(world) == {}


def test_one_wake_up_wakes_every_relay_and_none_is_lost_while_one_works():
    wakeups = Wakeups()
    waiters = [wakeups.waiter(Topic.RELAY) for _ in range(2)]
    wakeups.notify(Topic.RELAY)
    assert waiters[0].wait(0)
    assert not waiters[0].wait(0)
    wakeups.notify(Topic.RELAY)  # the other still works since before the first
    assert waiters[1].wait(0)
    assert not waiters[1].wait(0)
    assert waiters[0].wait(0)
    wakeups.notify(Topic.PLANNER)
    assert [waiter.wait(0) for waiter in waiters] == [False, False]
    assert wakeups.wait(Topic.PLANNER, 0)


def test_no_more_bodies_are_in_memory_at_once_than_may_be(make_world, monkeypatch):
    world = make_world(a_lane("one", shard_jobs_max=2, slots=9), a_lane("two", shard_jobs_max=1, slots=9))
    for lane in ("one", "two"):
        world.take_in(some_lines(6, lane), constraints=Constraints(lanes=(lane,)))
        while world.dispatch():
            pass
    [body_bytes] = {span.body_bytes_max for shard in world.all_shards().values() for span in shard.spans}
    monkeypatch.setattr(relay, "_STEP_BYTES_MAX", 3 * body_bytes)
    bus = Bus()
    sent = Relay(world.database, world.lanes, {"one": bus, "two": bus}, a_signer()[0], world.clock)
    steps = [sent.step() for _ in range(7)]
    assert sum(bus.taken.values()) == sum(steps) == 9
    assert steps == [1, 1, 2, 3, 2, 0, 0]

    world.take_in(some_lines(2, "more"), constraints=Constraints(lanes=("two",)))
    while world.dispatch():
        pass
    monkeypatch.setattr(relay, "_STEP_BYTES_MAX", 1)
    assert [sent.step() for _ in range(3)] == [1, 1, 0]  # one that is larger goes alone
