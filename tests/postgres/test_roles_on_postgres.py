"""Roles as they are wired, on threads and PostgreSQL, while the database can't be asked though it is there."""

from __future__ import annotations

import threading
import time

import pytest
from structlog.testing import capture_logs

from broker.bootstrap.roles import Role, start_roles
from broker.bootstrap.threads import Threads
from broker.bootstrap.wiring import Keys, LedgerSide, Peers, Transport, Wiring
from broker.database.drivers.postgres.database import PostgresDatabase, PostgresTerms
from broker.database.drivers.postgres.leadership import Leadership
from broker.front import Front
from broker.health import LaneHealth
from tests.unit.builders import World, a_lane, a_signer, some_lines


class Process:
    """Planner and dispatcher of one process; its readers have a pool of one connection."""

    def __init__(self, url, folder) -> None:
        self.database = PostgresDatabase(url, PostgresTerms(pool_size=1, pool_seconds=0.2, retry_seconds=0.5))
        self.world = World(PostgresDatabase(url, PostgresTerms(pool_size=2)), [a_lane("one"), a_lane("two")], folder)
        self.died = threading.Event()
        wakeups = self.world.wakeups
        self.threads = Threads(
            wakeups, full_disk_sentence="", end_seconds=60.0, on_death=self.died.set, end_process=lambda: None
        )
        front = Front(
            database=self.database,
            lanes=self.world.lanes,
            clock=self.world.clock,
            wakeups=wakeups,
            health=LaneHealth(),
            folder=folder,
        )
        self.leaders = {}
        start_roles(
            [Role.PLANNER, Role.DISPATCHER],
            Wiring(
                front=front,
                threads=self.threads,
                keys=Keys(a_signer("broker")[0], self.world.ring),
                transport=Transport(publishers={}, inboxes=[]),
                ledger=LedgerSide(known_lanes=self.world.lanes),
                keep=lambda: None,
                peers=Peers(leads=lambda role: self.leaders.setdefault(role, Leadership(url, role))),
            ),
        )

    def close(self) -> None:
        self.threads.stop()
        self.threads.end()
        self.threads.join(10)
        self.database.close()
        self.world.database.close()


@pytest.fixture
def process(postgres_url, tmp_path):
    made = Process(postgres_url, tmp_path)
    yield made
    made.close()


def until(condition, what, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def test_a_dispatcher_whose_reads_find_the_pool_full_goes_on_by_itself_and_keeps_its_lead(process):
    """PostgreSQL is up and the lock's session lives, so that nobody takes over: what its rest raised once ended it."""
    world = process.world
    world.take_in(some_lines(4))
    until(world.all_shards, "the first lines are dispatched")
    before = len(world.all_shards())
    held, goes_on = threading.Event(), threading.Event()

    def hold(_connection) -> None:
        held.set()
        goes_on.wait(30)

    holder = threading.Thread(target=lambda: process.database.read(hold))
    with capture_logs() as logs:
        holder.start()
        assert held.wait(5)

        def stuck(stage):
            return [line for line in logs if line["event"] == "stage_stuck" and line["stage"] == stage]

        until(lambda: len(stuck("dispatcher")) >= 2 and stuck("planner"), "both feel it")
        assert "no connection to the database became free" in stuck("dispatcher")[0]["reason"]
        goes_on.set()
        holder.join(10)
        for shard in world.all_shards().values():  # room for more
            world.claim(shard)
        world.take_in(some_lines(4), source_digest=b"d" * 32)
        until(lambda: len(world.all_shards()) > before, "the next lines are dispatched")
    assert not process.died.is_set()
    assert not [line for line in logs if line["event"] == "leadership_lost"]
