"""A lane's places at the dispatcher, on a real database: what it is sent, whatever its shards are like."""

from __future__ import annotations

from sqlalchemy import update

from broker.database.tables import ready
from broker.domain.errors import ErrorCode
from broker.domain.lane import EngineSettings
from tests.unit.builders import MODEL, SECOND_US, a_job_ran, a_lane, some_lines


def test_a_straggler_of_one_shard_keeps_no_place_from_the_next_ones(make_world):
    engine = EngineSettings(driver="echo", models=(MODEL,), concurrency=16)
    world = make_world(a_lane("first", engine=engine, shard_jobs_max=16), a_lane("other", models=("m2",)))
    world.take_in(some_lines(500))
    line = world.dispatch()
    assert [one.jobs_count for one in line] == [16] * 3  # a job for each place, and two shards behind
    for one in line[:2]:
        world.claim(one)
        world.record(world.ran(one, *map(a_job_ran, range(1, 16))))  # the first job of each goes on
    assert [one.jobs_count for one in world.dispatch()] == [16]  # two jobs go on, and 32 wait or have a place


def test_small_shards_fill_an_engine_whatever_its_lane_says_of_slots(make_world):
    engine = EngineSettings(driver="echo", models=(MODEL,), concurrency=40)
    world = make_world(a_lane(engine=engine, shard_jobs_max=2, slots=1))
    world.take_in(some_lines(200))
    assert sum(one.jobs_count for one in world.dispatch()) == 40 + 2 * 2
    assert world.dispatch() == []


def test_suspects_come_two_behind_the_one_that_has_the_engine(make_world):
    world = make_world()
    world.take_in(some_lines(30))
    world.database.write(lambda connection: connection.execute(update(ready).values(alone=True)))
    assert [one.jobs_count for one in world.dispatch()] == [1] * 3
    assert world.dispatch() == []


def test_a_shard_may_lie_while_what_waits_ahead_of_it_runs(make_world):
    engine = EngineSettings(driver="echo", models=(MODEL,), concurrency=16)
    world = make_world(a_lane(engine=engine, jobs_per_second=0.1))
    world.take_in(some_lines(200))
    line = world.dispatch()
    assert [one.jobs_count for one in line] == [4] * 6  # a quarter of the places each, however slow the lane is
    *_, first_waiting, last = line
    assert last.claim_by_us - first_waiting.claim_by_us == 4 / 0.1 * SECOND_US


def test_a_lane_that_comes_back_has_part_of_its_places_also_with_one_slot(make_world):
    engine = EngineSettings(driver="echo", models=(MODEL,), concurrency=64)
    world = make_world(a_lane(engine=engine, jobs_per_second=0.1, shard_jobs_max=2))
    world.take_in(some_lines(500))
    for _ in range(6):
        world.health.fault("lane-a", ErrorCode.ENGINE_UNREACHABLE)
        world.clock.advance(61)
    (trial,) = world.claimed()
    world.record(world.ran(trial, a_job_ran(0)))
    world.clock.advance(1)
    trust = world.health.trusts()["lane-a"]
    assert 0 < trust < 0.9
    assert sum(one.jobs_count for one in world.dispatch()) <= int(64 * trust) + 2 * 2
