"""Writers of the ledger over a restart of the server, which frees every slot: each still has a stream of its own."""

from __future__ import annotations

import os
import resource
import time

import pytest

from broker.database.drivers.postgres.database import PostgresDatabase, PostgresTerms
from broker.database.drivers.postgres.leadership import lock_stream
from broker.database.drivers.postgres.sessions import Session
from broker.domain.errors import BrokerError
from broker.ledger.tables import ledger_batch, ledger_stream
from broker.ledger.verifying import verify
from broker.stages.recorder import Recorder
from tests.services.private_postgres import PrivatePostgres
from tests.unit.builders import World, a_job_ran, a_lane, some_lines
from tests.upgraded import upgrade_postgres


@pytest.fixture(scope="module")
def server():
    with PrivatePostgres() as made:
        upgrade_postgres(made.url)
        yield made


@pytest.fixture
def databases(server):
    made = [PostgresDatabase(server.url, PostgresTerms(pool_size=2, retry_seconds=10.0)) for _ in range(2)]
    yield made
    for database in made:
        database.close()


def recorder_of(world, database, slot):
    return Recorder(
        database=database,
        lanes=world.lanes,
        ring=world.ring,
        clock=world.clock,
        wakeups=world.wakeups,
        health=world.health,
        slot=slot,
    )


def record(recorder, world, shard):
    """One flush; tried again while the server comes up, as the recorder's loop does."""
    event = world.message(world.ran(shard, *map(a_job_ran, range(shard.jobs_count))))
    deadline = time.monotonic() + 20
    while True:
        try:
            recorder.record([event])
        except BrokerError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        else:
            return


def held_again(slot):
    """A session connects at most once a second."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return slot.hold()
        except BrokerError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def streams_of(world):
    slots = {row.stream_id: row.slot for row in world.rows(ledger_stream)}
    batches = {}
    for row in world.rows(ledger_batch):
        name = slots[row.stream_id]
        batches[name] = batches.get(name, 0) + 1
    return batches


def test_after_a_restart_two_recorders_write_two_streams(server, databases, tmp_path):
    """The one that was idle meanwhile finds its slot taken, by a recorder that has just started."""
    mine, other = databases
    world = World(mine, [a_lane(shard_jobs_max=2, slots=8)], tmp_path)
    world.take_in(some_lines(12))
    shards = world.claimed()
    slots = [lock_stream(mine, "recorder")]
    idle = recorder_of(world, mine, slots[0])
    record(idle, world, shards[0])
    server.restart()
    slots.append(lock_stream(other, "recorder"))
    newcomer = recorder_of(world, other, slots[1])
    assert slots[1].name == "recorder-0", "the restart freed it"
    for number, shard in enumerate(shards[1:5]):
        record((idle, newcomer)[number % 2], world, shard)
    assert [slot.name for slot in slots] == ["recorder-1", "recorder-0"]
    assert streams_of(world) == {"recorder-0": 3, "recorder-1": 2}
    assert world.read(verify).faults == []
    for slot in slots:
        slot.close()


def test_a_slot_that_is_still_free_is_kept(server, databases):
    mine, other = databases
    first, second = lock_stream(mine, "closer"), lock_stream(other, "closer")
    assert (first.name, second.name) == ("closer-0", "closer-1")
    server.restart()
    assert (held_again(second), held_again(first)) == ("closer-1", "closer-0")
    first.close()
    second.close()


def test_without_a_server_a_writer_waits_and_writes_nobodys_stream(server, databases):
    slot = lock_stream(databases[0], "rescuer")
    server.stop()
    with pytest.raises(BrokerError, match="for another rescuer"):
        slot.hold()
    server.start()
    assert held_again(slot) == "rescuer-0"
    slot.close()


def test_a_session_settles_on_a_descriptor_above_1023(server):
    """`select.select` raises ValueError for one; it once was the leader's thread that met it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2_048), hard))
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(1_100)]
    low, high = Session(server.url, "low"), Session(server.url, "high")
    try:
        driver = high.driver()
        assert driver is not None
        assert driver.fileno() > 1_023
        for descriptor in taken:
            os.close(descriptor)
        taken = []
        assert low.driver().fileno() <= 1_023
        for session in (high, low):
            session._heard -= 60.0  # so that a question goes out now
            assert session.is_alive()
            assert session._asked
            session.settle()
            assert not session._asked
            assert session.is_alive()
            assert session.driver().execute("SELECT 1").fetchone() == (1,)
    finally:
        for descriptor in taken:
            os.close(descriptor)
        high.close()
        low.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
