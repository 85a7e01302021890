"""A worker whose engine isn't ready: it waits and says so, takes no shard meanwhile, and comes up by itself."""

from __future__ import annotations

import time

import pytest

from broker.domain.instance import InstanceState
from broker.domain.shard import ShardState
from tests.flow.program import kill_group
from tests.harness.lane_stand import LaneStand
from tests.harness.small_engine import SmallEngine
from tests.services.process import free_port


@pytest.fixture
def stands(tmp_path, redis_url):
    """Makes lanes with their doors open, each at the engine of that URL."""
    made = []

    def make(url, **options):
        folder = tmp_path / str(len(made))
        folder.mkdir()
        options = {"base_url": url, "health_path": "/health", "use_proxy": False, **options}
        made.append(LaneStand(folder, redis_url, driver="openai_http", options=options))
        made[-1].open_door()
        return made[-1]

    yield make
    for stand in made:
        stand.close()


def _until(condition, process, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_ready(stand):
    return any(line.startswith("Ready: lane") for line in stand.said)


def test_a_worker_waits_for_its_engine_and_the_well_one_beside_it_does_not(stands):
    loading, well = SmallEngine(health=503).open(), SmallEngine().open()
    slow, quick = stands(loading.url), stands(well.url)
    waits, works = slow.start_worker(), quick.start_worker()
    try:
        _until(lambda: _is_ready(quick), works)
        _until(lambda: slow.said, waits)
        assert slow.said == [
            f"Waiting for the engine: the engine at {loading.url} isn't ready: its health check answers HTTP 503\n"
        ]
        (sent,), (done,) = slow.send_shards(1), quick.send_shards(1)
        _until(lambda: well.served == 1, works)
        _until(lambda: loading.looks >= 3, waits)
        assert (slow.states([sent]), slow.waiting_messages(), loading.calls) == ([ShardState.SENT], 1, 0)
        assert slow.instance().state is InstanceState.STARTING
        assert quick.states([done]) == [ShardState.RUNNING]  # claimed; nobody records here
        loading.health = 200
        _until(lambda: _is_ready(slow), waits)
        _until(lambda: loading.served == 1, waits)
        assert slow.instance().state is InstanceState.RUNNING
        for process in (waits, works):
            process.terminate()
            assert process.wait(20) == 0
    finally:
        for process in (waits, works):
            kill_group(process)
        loading.close()
        well.close()


def test_a_worker_that_waits_for_its_engine_ends_when_it_is_told_to(stands):
    stand = stands(f"http://127.0.0.1:{free_port()}")
    process = stand.start_worker()
    try:
        _until(lambda: stand.said, process)
        assert "can't be reached: Connection refused" in stand.said[0]
        process.terminate()
        assert process.wait(10) == 0
        assert stand.instance().state is InstanceState.STOPPED
    finally:
        kill_group(process)


def test_a_worker_without_its_engines_key_says_so_and_ends(stands):
    stand = stands(f"http://127.0.0.1:{free_port()}", api_key_variable="NO_SUCH_KEY")
    process = stand.start_worker()
    try:
        assert process.wait(20) == 1
        assert "the environment variable NO_SUCH_KEY must hold its API key" in process.stderr.read()
    finally:
        kill_group(process)
