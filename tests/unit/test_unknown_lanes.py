"""A process older than a lane, or younger than one that left: it deals with what it finds there, or leaves it."""

from __future__ import annotations

import pytest

from broker.database.known_lanes import remember_lanes
from broker.database.tables import lane as lane_table
from broker.domain.job import Constraints
from broker.domain.shard import ShardState
from broker.ledger.prices import BookEntry, import_book
from broker.ledger.tables import attempt
from broker.stages.dispatcher import Dispatcher
from broker.stages.rescuer import LATE_SECONDS, Rescuer
from tests.unit.builders import LEASE_SECONDS, SECOND_US, World, a_lane, a_price, some_lines
from tests.unit.statements import counted

OLD = a_lane("old", slots=2)
NEW = a_lane("new", slots=2, price=a_price(7_200_000_000), region="us-east1")


@pytest.fixture
def two_lanes(make_world):
    """A shard on each of two lanes, both claimed; the rescuer knows only the first lane."""
    world = make_world(OLD, NEW)
    world.rescuer = _of_before(world)
    for name in ("old", "new"):
        world.take_in(some_lines(3, name), constraints=Constraints(lanes=(name,)))
    assert sorted(shard.lane for shard in world.claimed()) == ["new", "old"]
    return world


def _of_before(world: World) -> Rescuer:
    parts = {"database": world.database, "clock": world.clock, "wakeups": world.wakeups}
    return Rescuer(lanes=[OLD], lease_seconds=LEASE_SECONDS, **parts)


def _states(world: World) -> dict[str, tuple[ShardState, bool]]:
    return {shard.lane: (shard.state, shard.closed_us is not None) for shard in world.all_shards().values()}


def _step_for(world: World, seconds: float) -> None:
    end = world.clock.now_us + seconds * SECOND_US
    while world.clock.now_us < end:
        world.clock.advance(5)
        world.rescuer.step()


def test_a_shard_of_a_lane_that_was_added_since_is_rescued_at_its_price(two_lanes):
    two_lanes.database.write(lambda connection: remember_lanes(connection, two_lanes.lanes))
    assert two_lanes.fall_silent() == 2
    assert two_lanes.waiting_jobs() == 6
    _step_for(two_lanes, LATE_SECONDS + 20)
    assert {(row.lane, row.price_version, row.region) for row in two_lanes.rows(attempt)} == {
        (one.name, one.price.version, one.region) for one in (OLD, NEW)
    }
    assert two_lanes.verified().faults == []


def test_a_shard_of_a_lane_that_nobody_knows_keeps_none_from_being_rescued(two_lanes):
    assert two_lanes.fall_silent() == 1
    assert _states(two_lanes) == {"old": (ShardState.TAKEN_BACK, False), "new": (ShardState.RUNNING, False)}
    _step_for(two_lanes, LATE_SECONDS + 20)
    assert _states(two_lanes) == {"old": (ShardState.TAKEN_BACK, True), "new": (ShardState.RUNNING, False)}
    two_lanes.database.write(lambda connection: remember_lanes(connection, two_lanes.lanes))
    _step_for(two_lanes, LATE_SECONDS + 100)  # it is tried again each minute
    assert _states(two_lanes) == {"old": (ShardState.TAKEN_BACK, True), "new": (ShardState.TAKEN_BACK, True)}
    assert two_lanes.waiting_jobs() == 6


def test_more_unknown_ones_than_are_looked_at_in_a_step_keep_none_from_being_rescued(two_lanes, monkeypatch):
    monkeypatch.setattr("broker.stages.rescuer._SHARDS_PER_STEP", 1)
    for _ in range(2):  # further shards of the unknown lane, older than the next of the known one
        two_lanes.take_in(some_lines(2, "x"), constraints=Constraints(lanes=("new",)))
        two_lanes.claimed()
    two_lanes.take_in(some_lines(2, "y"), constraints=Constraints(lanes=("old",)))
    two_lanes.claimed()
    two_lanes.fall_silent(40)
    states = [(shard.lane, shard.state) for shard in two_lanes.all_shards().values()]
    assert {state for lane, state in states if lane == "old"} == {ShardState.TAKEN_BACK}
    assert {state for lane, state in states if lane == "new"} == {ShardState.RUNNING}


def test_a_lane_that_this_version_can_not_read_is_as_unknown_as_one_that_never_was(two_lanes):
    def keep(connection):
        remember_lanes(connection, two_lanes.lanes)
        connection.execute(lane_table.update().where(lane_table.c.name == "new").values(description=b"\x81\xa1a\x01"))

    two_lanes.database.write(keep)
    assert two_lanes.fall_silent() == 1
    assert _states(two_lanes)["old"] == (ShardState.TAKEN_BACK, False)


def test_a_candidate_that_left_the_catalog_is_passed_over(make_world):
    world = make_world(OLD, NEW)
    world.take_in(some_lines(3, "a"))
    world.take_in(some_lines(3, "n"), constraints=Constraints(lanes=("new",)))
    world.planner.step()
    world.dispatcher = Dispatcher(
        database=world.database,
        lanes=[OLD],
        clock=world.clock,
        wakeups=world.wakeups,
        health=world.health,
        capacity=lambda _connection: {"old": 2, "new": 2},
    )
    world.dispatcher.step()
    assert [shard.lane for shard in world.all_shards().values()] == ["old"]
    assert world.waiting_jobs() == 3  # for the lane that is gone


def test_what_ends_with_its_worker_is_bound_at_the_price_in_force(make_world):
    """Its third worker dies, so its attempt is written at once."""
    world = make_world(OLD)
    world.take_in(some_lines(1))
    for _ in range(3):
        world.claimed()
        assert world.fall_silent() == 1
    dearer = a_price(36_000_000_000)
    world.database.write(
        lambda connection: import_book(connection, "b", "file", [BookEntry("old", dearer)], world.clock())
    )
    world.clock.advance(5)
    for number in range(6):
        world.rescuer = _of_before(world)  # that has looked at no price yet
        world.clock.advance(15)
        assert len(world.claimed()) == 1
        world.fall_silent()
        if world.waiting_jobs() == 0:
            break
        assert number < 5
    ended = [row for row in world.rows(attempt) if row.decisive]
    assert [row.price_version for row in ended] == [dearer.version]
    # From its claim to its lease's end, at ten times the catalog's price: ten nano-dollars a microsecond.
    assert ended[0].cost_upper_nano_usd == round(LEASE_SECONDS * SECOND_US) * 10


def test_what_is_taken_back_takes_no_statement_for_each_job(make_world):
    assert _statements_of_a_rescue(make_world, 2) == _statements_of_a_rescue(make_world, 60)


def _statements_of_a_rescue(make_world, jobs: int) -> int:
    world = make_world(OLD)
    world.take_in(some_lines(jobs))
    world.claimed()
    world.fall_silent()
    (shard,) = world.claimed()  # whose jobs have had another try, which may have ended them
    assert shard.jobs_count == jobs
    world.clock.advance(7)
    world.rescuer.step()
    world.clock.advance(7)
    world.rescuer.step()
    world.clock.advance(5)
    with counted() as seen:
        assert world.rescuer.step() == 1
    return len(seen)
