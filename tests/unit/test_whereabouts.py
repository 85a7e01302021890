"""Where a job is said to be, while others of its batch are elsewhere."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import text

from broker.domain.job import Constraints
from broker.ledger.explaining import find_job, where_is
from broker.ledger.standing import standing
from tests.unit.builders import World, a_job_ran, a_lane, a_preemption, some_lines


def _said(world: World, name: str) -> tuple[str, str, str | None]:
    """By `jobs explain` and by the door; the two agree."""
    (job_id,) = world.read(find_job, "t", name)
    words = world.read(where_is, "t", job_id)
    assert words == world.read(where_is, None, job_id)
    stands = world.read(standing, "t", job_id)
    return words, stands.status, stands.lane


@pytest.fixture
def one_again(make_world):
    """A shard of twenty whose index 3 was preempted, and runs again in a shard of its own."""
    world = make_world(a_lane(slots=8, shard_jobs_max=20))
    world.take_in(some_lines(20))
    world.take_in(some_lines(2, "other"), constraints=Constraints(lanes=("lane-a",)))
    first, _ = sorted(world.claimed(), key=lambda shard: -shard.jobs_count)
    world.record(world.ran(first, a_preemption(3)))
    (again,) = [shard for shard in world.dispatch() if shard.jobs_count == 1]
    world.again, world.first = again, first
    return world


def test_a_job_behind_one_that_runs_again_is_still_said_to_run(one_again):
    assert one_again.claim(one_again.again).granted
    for name in ("a0", "a3", "a10", "a19", "other1"):
        assert _said(one_again, name) == ("running on lane lane-a", "running", "lane-a"), name


def test_a_job_whose_first_try_was_recorded_is_where_its_second_is(one_again):
    assert _said(one_again, "a3") == ("sent to lane lane-a", "waiting", None)
    assert _said(one_again, "a4")[1] == "running"


def test_a_job_whose_shard_was_taken_back_waits(make_world):
    world = make_world(a_lane(slots=1, shard_jobs_max=5))
    world.take_in(some_lines(5))
    (shard,) = world.claimed()
    world.record(world.ran(shard, a_job_ran(0)))
    world.fall_silent()
    assert _said(world, "a0")[1] == "succeeded"
    assert _said(world, "a1") == ("waiting for a lane with room", "waiting", None)


def test_of_several_batches_the_newest_ones_job_comes_first(world):
    for number in range(12):
        world.take_in(some_lines(3), source_digest=bytes([number]) * 32)
        world.clock.advance(1)
    world.take_in(some_lines(3), tenant_id="u")
    found = world.read(find_job, "t", "a1")
    assert len(found) == len(set(found)) == 10
    assert found == sorted(found, reverse=True)
    assert len(world.read(find_job, "u", "a1")) == 1
    assert world.read(find_job, "t", "nobody") == []


def test_a_job_is_found_by_name_through_an_index(world):
    for number in range(3):
        world.take_in(some_lines(200), source_digest=bytes([number]) * 32)

    def plan(connection) -> str:
        if connection.dialect.name == "postgresql":
            connection.execute(text("ANALYZE job"))
        seen: list[str] = []
        ask = "EXPLAIN " if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "
        execute = connection.execute

        class Asking:
            def execute(self, statement):
                bound = statement.compile(connection.engine, compile_kwargs={"literal_binds": True})
                seen.extend(str(row) for row in connection.exec_driver_sql(ask + str(bound)))
                return execute(statement)

        find_job(Asking(), "t", "a1")
        return "\n".join(seen)

    said = world.database.write(plan)
    assert "ix_job_custom" in said, said
    assert not re.search(r"(SCAN|Seq Scan on) job\b", said), said
