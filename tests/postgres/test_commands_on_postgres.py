"""What the commands tell of a broker on PostgreSQL, which they read themselves or ask its door for."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from typer.testing import CliRunner

from broker.api.desk import Desk
from broker.cli import jobs, ledger
from broker.database import workers
from broker.domain.identity import LOCAL
from broker.domain.ids import format_id
from broker.domain.presence import WorkerPresence
from broker.front import Front
from tests.unit.builders import a_failure, a_job_ran, some_lines


@dataclass
class Told:
    url: str

    def __call__(self, app, *words, how="option"):
        given = ["--database-url", self.url] if how == "option" else []
        environment = {"BROKER_DATABASE_URL": self.url if how == "variable" else "", "COLUMNS": "200"}
        ran = CliRunner().invoke(app, [*words, *given], env=environment)
        assert ran.exit_code == 0, ran.output
        return ran.stdout


@pytest.fixture
def told(postgres_url):
    return Told(postgres_url)


@pytest.mark.parametrize("how", ["option", "variable"])
def test_the_summary_and_a_jobs_story_are_told_of_postgres(told, world, how):
    world.take_in(some_lines(2), tenant_id=LOCAL.tenant)
    (shard,) = world.claimed()
    world.record(world.ran(shard, a_job_ran(0), a_failure(1)))
    world.clock.advance(1)
    world.run_all()
    (row,) = json.loads(told(ledger.app, "summary", "--by", "lane", "--format", "json", how=how))
    assert (row["lane"], row["jobs"], row["attempts"], row["cost_nano_usd"]) == ("lane-a", 2, 3, 3_000)
    story = told(jobs.app, "explain", "a1", how=how)
    assert story.splitlines()[0] == f"{format_id('job', shard.job_id_at(1))}   custom_id a1"
    assert "Attempt 1: failed (engine_failed) on lane lane-a" in story
    assert "Attempt 2: succeeded on lane lane-a" in story


def test_a_job_that_waits_is_told_too(told, world):
    world.take_in(some_lines(1))
    assert "waiting for a lane with room" in told(jobs.app, "explain", "a0")


def test_lanes_are_shown_with_the_slots_of_their_live_workers(world, tmp_path):
    parts = {"database": world.database, "lanes": world.lanes, "clock": world.clock, "wakeups": world.wakeups}
    front = Front(
        health=world.health,
        folder=tmp_path,
        live_slots=lambda connection: workers.live_slots(connection, world.clock() - 15_000_000),
        **parts,
    )
    desk = Desk(front, None, 1_000)
    assert [lane.slots for lane in desk.lanes.every(LOCAL)] == [0]
    world.door.report(WorkerPresence("w1", "lane-a", 3))
    world.door.report(WorkerPresence("w2", "lane-a", 4))
    assert [lane.slots for lane in desk.lanes.every(LOCAL)] == [7]
    world.door.report(WorkerPresence("w2", "lane-a", 4, leaving=True))
    assert [lane.slots for lane in desk.lanes.every(LOCAL)] == [3]
    world.clock.advance(16)
    assert [lane.slots for lane in desk.lanes.every(LOCAL)] == [0]
