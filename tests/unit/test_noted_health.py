"""A broker of one process notes its lanes' health for who reads its database; what it goes by is its own."""

from __future__ import annotations

import pytest

from broker.database.lane_health import kept_health
from broker.database.noted_health import NotedLaneHealth
from broker.domain.errors import ErrorCode
from tests.unit.builders import a_lane

LANES = [a_lane("cheap"), a_lane("dear"), a_lane("other")]


def test_one_process_notes_its_lanes_health_for_readers(make_world):
    world = make_world(*LANES)
    health = NotedLaneHealth(world.database, world.clock)
    health.success("cheap")
    assert world.read(kept_health) == {}
    health.fault("cheap", ErrorCode.ENGINE_STARTING, 20.0)
    health.fault("dear", ErrorCode.ENGINE_BUSY)
    noted = world.read(kept_health)
    assert {lane: one.code for lane, one in noted.items()} == {"cheap": "engine_starting", "dear": "engine_busy"}
    now_s = world.clock() / 1e6
    assert noted["cheap"].health.since_s == pytest.approx(now_s, abs=1)
    assert noted["cheap"].health.rests_until_s == pytest.approx(now_s + 20, abs=1)
    world.clock.advance(-7_200)  # set back: what rests is not told by it
    assert health.resting()["cheap"].left_s == pytest.approx(20, abs=1)
    health.success("cheap")
    assert set(world.read(kept_health)) == {"dear"}
    NotedLaneHealth(world.database, world.clock).begin()
    assert world.read(kept_health) == {}
    world.database.close()
    health.fault("other", ErrorCode.ENGINE_BUSY)  # while it all ends
