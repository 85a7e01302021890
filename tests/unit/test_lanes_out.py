"""A job that waits is told which of its lanes get no work, since when, why and until when; others are no matter."""

from __future__ import annotations

import pytest

from broker.api.desk import Desk
from broker.api.views import job_state
from broker.database import lane_states
from broker.database.shared_health import SharedLaneHealth
from broker.domain.errors import ErrorCode
from broker.domain.ids import format_id
from broker.domain.job import Constraints
from broker.domain.lane import LaneState
from broker.front import Front
from broker.ledger.explaining import find_job, where_is
from broker.ledger.standing import standing
from broker.rules.placement.policy import Policy
from tests.unit.builders import a_lane, a_price, an_identity, some_lines

LANES = [a_lane("cheap"), a_lane("dear", price=a_price(7_200_000_000)), a_lane("other", models=("m2",))]


@pytest.fixture
def waiting(make_world):
    """Jobs of two tenants wait, those of the second for one lane alone; nothing has room."""
    world = make_world(*LANES)
    world.place_by(Policy(), slots={})
    world.take_in(some_lines(2))
    world.take_in(some_lines(2), tenant_id="u", constraints=Constraints(lanes=("dear",)))
    world.dispatch()
    world.health = SharedLaneHealth(world.database, world.clock, lambda: 1.0)
    return world


def words(world, tenant: str) -> list[str]:
    (job_id,) = world.read(find_job, tenant, "a1")
    first, *others = world.read(where_is, tenant, job_id, world.clock()).split("; ")
    assert first == "waiting for a lane with room"
    return others


def test_a_lane_at_rest_is_named_to_those_who_could_have_it(waiting):
    assert words(waiting, "t") == words(waiting, "u") == []
    waiting.health.fault("cheap", ErrorCode.ENGINE_BUSY, 30.0)
    waiting.health.fault("other", ErrorCode.ENGINE_FAILED)
    since, until = "2027-01-15 08:00:00Z", "2027-01-15 08:00:30Z"
    said = words(waiting, "t")
    assert said == [f"cheap rests: engine_busy since {since}, and a job may try it at {until}"]
    assert words(waiting, "u") == []
    waiting.clock.advance(31)
    assert words(waiting, "t") == [f"cheap rests: engine_busy since {since}, and a job may try it since {until}"]
    waiting.health.success("cheap")
    assert words(waiting, "t") == []


def test_so_is_one_that_somebody_paused(waiting):
    waiting.database.write(lambda connection: lane_states.set_state(connection, "dear", LaneState.PAUSED, 1))
    assert words(waiting, "t") == words(waiting, "u") == ["dear is paused"]


def test_the_door_tells_it_too(waiting):
    parts = {"database": waiting.database, "lanes": waiting.lanes, "clock": waiting.clock}
    front = Front(health=waiting.health, folder=waiting.folder, wakeups=waiting.wakeups, **parts)
    desk = Desk(front, None, 1_000).jobs

    def lanes_out(tenant: str) -> list[tuple]:
        (job_id,) = waiting.read(find_job, tenant, "a1")
        found = desk.find(an_identity(tenant), format_id("job", job_id)).lanes_out
        return [(one.lane, one.state, one.reason, one.since, one.until) for one in found]

    assert lanes_out("t") == []
    waiting.health.fault("cheap", ErrorCode.ENGINE_BUSY, 30.0)
    waiting.database.write(lambda connection: lane_states.set_state(connection, "dear", LaneState.PAUSED, 1))
    moments = ("2027-01-15T08:00:00.000Z", "2027-01-15T08:00:30.000Z")
    assert lanes_out("t") == [("cheap", "open", "engine_busy", *moments), ("dear", "paused", None, None, None)]
    assert lanes_out("u") == [("dear", "paused", None, None, None)]
    (job_id,) = waiting.read(find_job, "t", "a1")
    assert job_state(waiting.read(standing, "t", job_id)).lanes_out == ()


def test_what_no_lane_may_do_says_so(make_world):
    world = make_world(*LANES)
    world.take_in(some_lines(2), constraints=Constraints(regions=("moon",)))
    world.dispatch()
    (said,) = words(world, "t")
    assert said.startswith("no lane may do it: ")
    assert "cheap (regions: not among moon)" in said
