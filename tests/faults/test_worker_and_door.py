"""A worker whose door is not up yet, and one whose key the broker no longer takes: what it says, and what is left."""

from __future__ import annotations

import re
import time

import pytest

from broker.domain.instance import InstanceState
from broker.domain.shard import ShardState
from tests.flow.program import kill_group
from tests.harness.lane_stand import LaneStand


@pytest.fixture
def stand(tmp_path, redis_url):
    made = LaneStand(tmp_path, redis_url)
    yield made
    made.close()


def _until(condition, process, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_worker_that_starts_before_the_door_waits_says_so_and_works(stand):
    process = stand.start_worker()
    try:
        _until(lambda: stand.said, process)
        assert stand.said == [f"Waiting for the broker at {stand.url}: the broker can't be asked: ConnectError\n"]
        time.sleep(1.5)
        assert process.poll() is None
        stand.open_door()
        _until(lambda: any(line.startswith("Ready: lane") for line in stand.said), process)
        process.terminate()
        assert process.wait(20) == 0
    finally:
        kill_group(process)


def test_a_worker_that_waits_for_the_door_ends_when_it_is_told_to(stand):
    process = stand.start_worker()
    try:
        _until(lambda: stand.said, process)
        process.terminate()
        assert process.wait(10) == 0
    finally:
        kill_group(process)


def test_an_instance_is_known_from_its_start_to_its_end(stand):
    stand.open_door()
    process = stand.start_worker("--resource-id", "//compute.example/vm-1")
    try:
        _until(lambda: (one := stand.instance()) and one.state is InstanceState.RUNNING, process)
        (shard_id,) = stand.send_shards(1)
        _until(lambda: stand.states([shard_id]) == [ShardState.RUNNING], process)
        process.terminate()
        assert process.wait(20) == 0
    finally:
        kill_group(process)
    one = stand.instance()
    assert (one.state, one.resource_id, one.slots) == (InstanceState.STOPPED, "//compute.example/vm-1", 1)
    assert one.started_us <= one.ready_us < one.draining_us < one.stopped_us == one.last_seen_us


def test_an_instance_that_is_killed_is_lost(stand):
    stand.open_door()
    process = stand.start_worker()
    try:
        _until(lambda: (one := stand.instance()) and one.state is InstanceState.RUNNING, process)
    finally:
        kill_group(process)
    assert stand.instance(14).state is InstanceState.RUNNING
    lost = stand.instance(21)
    assert (lost.state, lost.stopped_us) == (InstanceState.LOST, None)
    assert re.fullmatch(r".+@\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", lost.resource_id)


def test_a_worker_whose_key_was_revoked_says_so_once_and_gives_back_what_it_had_not_begun(stand):
    stand.open_door()
    process = stand.start_worker()
    try:
        _until(lambda: any(line.startswith("Ready") for line in stand.said), process)
        sent = stand.send_shards(4)
        _until(lambda: stand.states(sent).count(ShardState.RUNNING) == 2, process)  # one job runs, one is next
        stand.ring.replace({})
        began = time.monotonic()
        assert process.wait(60) == 1
        seconds = time.monotonic() - began
        sentence = process.stderr.read().splitlines()[-1]
    finally:
        kill_group(process)
    assert 15 <= seconds < 40, seconds
    assert re.fullmatch(
        f"error: lane {stand.name} can't work: the broker at {stand.url} refuses it .this is not a lane's signed "
        "question: signed with the unknown key '[0-9a-f]{16}'.; `broker keys list` shows which keys are in force",
        sentence,
    ), sentence
    assert stand.waiting_messages() == 2
    assert sorted(stand.states(sent)) == [ShardState.RUNNING] * 2 + [ShardState.SENT] * 2


def test_a_worker_whose_key_the_broker_never_knew_says_so_at_its_start(stand):
    stand.ring.replace({})
    stand.open_door()
    process = stand.start_worker()
    try:
        assert process.wait(60) == 1
        assert "refuses it" in process.stderr.read().splitlines()[-1]
    finally:
        kill_group(process)
    assert stand.said[0].startswith("Waiting for the broker")
