"""Several tenants at the dispatcher, on a real database: a large one has the slots, the others' jobs go beside them."""

from __future__ import annotations

from sqlalchemy import update

from broker.database.tables import ready, shard
from broker.domain.lane import EngineSettings
from tests.unit.builders import MODEL, a_job_ran, a_lane, a_price, some_lines

ENGINE = EngineSettings(driver="echo", models=(MODEL,), concurrency=16)
CHEAP = a_lane("cheap", slots=2, engine=ENGINE, shard_jobs_max=100)
DEAR = a_lane("dear", slots=2, engine=ENGINE, shard_jobs_max=100, price=a_price(7_200_000_000))


def test_a_small_tenants_jobs_go_beside_a_large_ones_on_the_lane_that_is_best_for_them(make_world):
    world = make_world(CHEAP, DEAR)
    world.take_in(some_lines(1_000), tenant_id="large")
    assert [one.lane for one in world.dispatch()] == ["cheap"] * 4 + ["dear"] * 4
    world.take_in(some_lines(3, "s"), tenant_id="small")
    assert world.dispatch() == []  # nobody else was expected
    (full, *_) = [one for one in world.all_shards().values() if one.lane == "cheap"]
    world.claim(full)
    world.record(world.ran(full, *(a_job_ran(index) for index in range(100))))
    other, beside = sorted(world.dispatch(), key=lambda one: one.tenant_id)
    assert (other.tenant_id, other.lane, other.beside) == ("large", "cheap", False)
    assert (beside.tenant_id, beside.lane, beside.jobs_count, beside.beside) == ("small", "cheap", 3, True)
    assert beside.reason == "the cheapest of 2 allowed lanes, beside other tenants' work"
    assert [row.beside for row in world.rows(shard) if row.shard_id == beside.shard_id] == [True]


def test_beside_it_gets_its_part_of_the_engines_places_and_the_large_one_fills_no_room_that_is_kept(make_world):
    world = make_world(CHEAP)
    world.take_in(some_lines(1_000), tenant_id="large")
    world.take_in(some_lines(1, "s"), tenant_id="small")
    first = world.dispatch()
    assert sorted(one.tenant_id for one in first) == ["large"] * 3 + ["small"]
    small = next(one for one in first if one.tenant_id == "small")
    world.claim(small)
    world.record(world.ran(small, a_job_ran(0)))
    assert world.dispatch() == []  # a room is free, and stays so
    world.take_in(some_lines(30, "t"), tenant_id="small")
    (beside,) = world.dispatch()
    assert (beside.tenant_id, beside.jobs_count, beside.beside) == ("small", 8, True)
    world.claim(beside)
    world.record(world.ran(beside, *(a_job_ran(index) for index in range(8))))
    assert [(one.tenant_id, one.jobs_count) for one in world.dispatch()] == [("small", 8)]


def test_a_tenant_alone_goes_beside_nothing(make_world):
    world = make_world(CHEAP)
    for number in range(6):
        world.take_in(some_lines(1, f"{number}-"), window_seconds=1_000 + 100 * number)
    assert [one.beside for one in world.dispatch()] == [False] * 6


def test_a_suspect_never_goes_beside(make_world):
    world = make_world(CHEAP)
    world.take_in(some_lines(1_000), tenant_id="large")
    world.take_in(some_lines(1, "s"), tenant_id="small")
    *large, small = sorted(world.dispatch(), key=lambda one: one.tenant_id)
    world.claim(small)
    world.record(world.ran(small, a_job_ran(0)))
    world.take_in(some_lines(1, "x"), tenant_id="small")
    one_job = update(ready).where(ready.c.jobs_count == 1)
    world.database.write(lambda connection: connection.execute(one_job.values(alone=True)))
    assert world.dispatch() == []
    for one in large[:2]:
        world.claim(one)
        world.record(world.ran(one, *(a_job_ran(index) for index in range(100))))
    assert [one.beside for one in world.dispatch() if one.tenant_id == "small"] == [False]


def test_what_is_no_suspect_goes_beside_where_one_would_wait(make_world):
    world = make_world(CHEAP)
    world.take_in(some_lines(1_000), tenant_id="large")
    world.take_in(some_lines(1, "s"), tenant_id="small")
    small = next(one for one in world.dispatch() if one.tenant_id == "small")
    world.claim(small)
    world.record(world.ran(small, a_job_ran(0)))
    world.take_in(some_lines(1, "x"), tenant_id="small")
    assert [one.beside for one in world.dispatch()] == [True]
