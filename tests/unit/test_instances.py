"""The registry of instances: the furthest word holds, silence is loss, and hours are those that are known."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from broker.api.desk import Desk
from broker.api.errors import Refused
from broker.cli.worker import app as worker_command
from broker.database import instances, tables, workers
from broker.domain.identity import LOCAL
from broker.domain.instance import InstanceState
from broker.domain.lane import PriceMeter
from broker.domain.presence import WorkerPresence
from broker.front import Front
from tests.unit.builders import NOW_US, SECOND_US, a_lane, a_price

STARTING = WorkerPresence("w1", "lane-a", 0, resource_id="//cloud/vm-1")
RUNNING = WorkerPresence("w1", "lane-a", 3, resource_id="//cloud/vm-1")
DRAINING = WorkerPresence("w1", "lane-a", 3, leaving=True, resource_id="//cloud/vm-1")
GONE = WorkerPresence("w1", "lane-a", 3, leaving=True, resource_id="//cloud/vm-1", gone=True)
ORDER = [STARTING, RUNNING, DRAINING, GONE]
STATES = [InstanceState.STARTING, InstanceState.RUNNING, InstanceState.DRAINING, InstanceState.STOPPED]


class OldPresence(msgspec.Struct, frozen=True, array_like=True, tag="presence"):
    """What workers said before there were instances."""

    worker_id: str
    lane: str
    slots: int
    leaving: bool = False


def found(world, *, ended=True):
    now_us = world.clock()
    return world.read(lambda connection: instances.find_instances(connection, now_us, None, ended=ended, limit=100))


def counts(world):
    """Live instances by lane and state."""
    live = found(world, ended=False)
    return Counter((instance.lane, instance.state.value) for instance in live)


def noticed(world):
    return world.database.write(lambda connection: instances.notice_lost(connection, world.clock()))


@given(words=st.lists(st.sampled_from(range(4)), min_size=1, max_size=8))
def test_words_that_come_twice_or_out_of_order_change_nothing(make_world, words):
    world = make_world()
    for word in words:
        world.door.report(ORDER[word])
        world.clock.advance(1)
    (one,) = found(world)
    assert one.state is STATES[max(words)]
    assert (one.worker_id, one.lane, one.resource_id) == ("w1", "lane-a", "//cloud/vm-1")
    assert one.started_us == NOW_US
    said_until_stop = words[: words.index(3) + 1] if 3 in words else words
    assert one.last_seen_us == NOW_US + (len(said_until_stop) - 1) * SECOND_US
    assert (one.ready_us is not None) == (1 in said_until_stop)
    assert (one.draining_us is not None) == (max(words) >= 2)
    assert one.stopped_us == (one.last_seen_us if 3 in words else None)


def test_one_that_starts_is_no_capacity_and_one_that_left_stays_away(world):
    def slots():
        return world.read(workers.live_slots, world.clock() - 15 * SECOND_US)

    world.door.report(STARTING)
    assert slots() == {}
    assert counts(world) == {("lane-a", "starting"): 1}
    world.door.report(RUNNING)
    world.door.report(WorkerPresence("w2", "lane-a", 1))
    world.door.report(WorkerPresence("w3", "lane-b", 1))
    assert slots() == {"lane-a": 4, "lane-b": 1}
    world.door.report(DRAINING)
    world.door.report(RUNNING)  # under way since before
    assert slots() == {"lane-a": 1, "lane-b": 1}
    assert counts(world) == {("lane-a", "running"): 1, ("lane-a", "draining"): 1, ("lane-b", "running"): 1}


def test_silence_is_loss_whether_or_not_it_was_noted_and_a_word_ends_it(world):
    world.door.report(RUNNING)
    world.clock.advance(15)
    assert (noticed(world), [one.state for one in found(world)]) == (0, [InstanceState.RUNNING])
    world.clock.advance(1)
    assert ([one.state for one in found(world)], found(world, ended=False)) == ([InstanceState.LOST], [])
    assert counts(world) == {}
    assert [row.state for row in world.rows(tables.instance)] == ["running"]
    assert (noticed(world), noticed(world)) == (1, 0)
    assert [row.state for row in world.rows(tables.instance)] == ["lost"]
    world.door.report(RUNNING)
    (back,) = found(world, ended=False)
    assert (back.state, back.started_us) == (InstanceState.RUNNING, NOW_US)


def test_a_stopped_one_is_never_lost(world):
    world.door.report(GONE)
    world.clock.advance(60)
    assert (noticed(world), [one.state for one in found(world)]) == (0, [InstanceState.STOPPED])


@pytest.mark.parametrize("leaving", [False, True])
def test_doors_and_workers_of_before_and_after_understand_each_other(leaving):
    old = OldPresence("w1", "lane-a", 3, leaving)
    heard = msgspec.msgpack.decode(msgspec.msgpack.encode(old), type=WorkerPresence)
    assert heard == WorkerPresence("w1", "lane-a", 3, leaving)
    assert not heard.is_starting
    for word in ORDER:
        understood = msgspec.msgpack.decode(msgspec.msgpack.encode(word), type=OldPresence)
        # To a door of before, one that starts has no slots, and one that has gone has left.
        assert (understood.slots, understood.leaving) == (word.slots, word.leaving)


def test_one_of_before_is_known_by_its_worker(world):
    world.door.report(WorkerPresence("host-1-ab", "lane-a", 1))
    assert [one.resource_id for one in found(world)] == ["host-1-ab"]


@pytest.fixture
def desk(make_world):
    by_token = a_lane("tokens", price=a_price(0, meter=PriceMeter.TOKEN, input_token_pico_usd=1))
    world = make_world(a_lane(), by_token)
    parts = {"database": world.database, "lanes": world.lanes, "clock": world.clock, "wakeups": world.wakeups}
    made = Desk(Front(health=world.health, folder=world.folder, **parts), None, 1_000)
    made.world = world
    return made


def test_hours_and_list_price_are_those_that_are_known(desk):
    world = desk.world
    world.door.report(RUNNING)
    world.door.report(WorkerPresence("w2", "lane-a", 1, resource_id="vm-2"))
    world.door.report(WorkerPresence("w3", "tokens", 1))
    world.door.report(WorkerPresence("w4", "gone-lane", 1))
    world.clock.advance(1_800)
    world.door.report(GONE)
    world.clock.advance(1_800)
    world.door.report(WorkerPresence("w4", "gone-lane", 1))
    shown = {one.worker_id: one for one in desk.lanes.instances(LOCAL, None, ended=True)}
    # $3.60 an hour: half an hour of w1, and of w2 nothing beyond its one word.
    assert (shown["w1"].state, shown["w1"].seconds, shown["w1"].list_cost_nano_usd) == ("stopped", 1_800, 1_800_000_000)
    assert (shown["w2"].state, shown["w2"].seconds, shown["w2"].list_cost_nano_usd) == ("lost", 0, 0)
    assert shown["w3"].list_cost_nano_usd is None
    assert (shown["w4"].seconds, shown["w4"].list_cost_nano_usd) == (3_600, None)
    assert [one.worker_id for one in desk.lanes.instances(LOCAL, None, ended=False)] == ["w4"]
    assert {one.worker_id for one in desk.lanes.instances(LOCAL, "lane-a", ended=True)} == {"w1", "w2"}
    assert desk.lanes.instances(LOCAL, "tokens", ended=False) == []
    with pytest.raises(Refused, match="there is no lane 'lane-x'; the catalog has lane-a, tokens"):
        desk.lanes.instances(LOCAL, "lane-x", ended=False)


@pytest.mark.parametrize("how", ["option", "variable"])
def test_a_resource_id_that_can_not_be_one_is_refused(how):
    words = ["--lane", "google-tpu-v5e", "--url", "http://127.0.0.1:9"]
    environment = {"BROKER_RESOURCE_ID": "a\nb" if how == "variable" else ""}
    given_words = [*words, "--resource-id", "a\nb"] if how == "option" else words
    ran = CliRunner().invoke(worker_command, given_words, env=environment)
    name = "--resource-id" if how == "option" else "BROKER_RESOURCE_ID"
    assert str(ran.exception) == f"{name} is 'a\\nb'; it must be at most 512 printable characters"
