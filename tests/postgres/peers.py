"""A second process of each role beside the test's world, what must hold whatever they do, and a common start."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import select

from broker.database.drivers.postgres.database import PostgresDatabase, PostgresTerms
from broker.database.tables import shard, shard_span
from broker.domain.ids import ids_of_span
from broker.leasing import LeaseDoor
from broker.ledger.streams import FixedSlot
from broker.ledger.tables import attempt, job_outcome
from broker.stages.closer import Closer
from broker.stages.dispatcher import Dispatcher
from broker.stages.recorder import Recorder
from broker.stages.rescuer import Rescuer
from tests.unit.builders import LEASE_SECONDS


class Peers:
    """The test's world, and what a second process has of each role; both on connections of their own."""

    def __init__(self, world, url):
        self.world = world
        self.database = PostgresDatabase(url, PostgresTerms(name="peer", pool_size=4))
        slots = {str(lane.name): lane.slots for lane in world.lanes}
        parts = {"lanes": world.lanes, "clock": world.clock, "wakeups": world.wakeups}
        mine, other = {"database": world.database, **parts}, {"database": self.database, **parts}
        self.doors = [LeaseDoor(one["database"], world.clock, LEASE_SECONDS) for one in (mine, other)]
        self.recorders = [
            Recorder(ring=world.ring, health=world.health, slot=FixedSlot(f"recorder-{number}"), **one)
            for number, one in enumerate((mine, other))
        ]
        self.looks = [lambda _connection: slots] * 2  # how each dispatcher finds its room
        self.dispatchers = [
            Dispatcher(health=world.health, capacity=lambda connection, n=n: self.looks[n](connection), **one)
            for n, one in enumerate((mine, other))
        ]
        self.rescuers = [
            Rescuer(lease_seconds=LEASE_SECONDS, slot=FixedSlot(f"rescuer-{number}"), **one)
            for number, one in enumerate((mine, other))
        ]
        self.closers = [
            Closer(
                database=one["database"], clock=world.clock, wakeups=world.wakeups, slot=FixedSlot(f"closer-{number}")
            )
            for number, one in enumerate((mine, other))
        ]

    def check(self, *batch_ids):
        """No job has two ends, no attempt two rows, and sums are those of the attempts."""
        world = self.world
        attempts, outcomes = world.rows(attempt), world.rows(job_outcome)
        places = Counter((row.shard_id, row.shard_index) for row in attempts)
        assert set(places.values()) <= {1}
        decisive = Counter(row.job_id for row in attempts if row.decisive)
        assert set(decisive.values()) <= {1}
        assert {row.job_id for row in outcomes if row.attempt_id} == set(decisive)
        for batch_id in batch_ids:
            counts = world.counts(batch_id)
            mine = [row for row in attempts if row.batch_id == batch_id]
            assert counts.attempts == len(mine)
            assert counts.cost_nano_usd == sum(row.cost_nano_usd for row in mine)
            assert counts.wasted_nano_usd == sum(row.cost_nano_usd for row in mine if row.outcome != "succeeded")
            assert counts.ended == sum(row.batch_id == batch_id for row in outcomes)
        assert world.verified().faults == []

    def finish(self, *records):
        """Whatever is left runs to its end."""
        self.world.clock.advance(60)
        self.world.run_all()
        assert self.world.waiting() == []
        for record in records:
            assert self.world.counts(record.batch_id).ended == record.accepted_jobs
        self.check(*(record.batch_id for record in records))


def race(*works):
    """All at the same moment; what each returned."""
    start = threading.Barrier(len(works))

    def run(work):
        start.wait(10)
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result(60) for future in [pool.submit(run, work) for work in works]]


def jobs_in_shards(world):
    """Each job of every open shard, once for every time that it is in one."""
    rows = world.read(
        lambda connection: connection.execute(
            select(shard_span.c.first_job_id, shard_span.c.jobs_count)
            .join(shard, shard.c.shard_id == shard_span.c.shard_id)
            .where(shard.c.closed_us.is_(None), shard.c.state.in_(["sent", "running"]))
        ).all()
    )
    return Counter(job_id for first, count in rows for job_id in ids_of_span(first, count))
