"""A worker of build e1cf361 at this broker, and a worker of this build at that broker: both are served.

What the old worker says are its own bytes, recorded; how the old build reads is its own code, copied.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import text

from broker.api.leases import LeaseCounter
from broker.bus.envelope import ENVELOPE_VERSION, Kind, open_shard, seal
from broker.database.tables import instance, worker
from broker.domain.errors import ErrorCode
from broker.domain.events import ShardReturned
from broker.domain.parked import AskToPark
from broker.domain.paths import LEASES, LEASES_BEFORE
from broker.domain.presence import WorkerPresence
from broker.domain.shard import Bitmap, ClaimShards, RenewLease, ShardState
from broker.ledger.tables import attempt
from broker.signing import KeyRing, KeyRole, PublicKey
from broker.stages.recorder import Recorder
from broker.stages.relay import Relay
from tests.fixtures.old_worker import wire
from tests.unit.builders import Message, a_failure, a_job_ran, a_lane, a_signer, some_lines

RECORDED = json.loads((Path(__file__).parents[1] / "fixtures" / "old_worker" / "e1cf361.json").read_text())
FRAMES = {name: bytes.fromhex(frame) for name, frame in RECORDED["frames"]}
SHARD = bytes(range(16))
KEY = Ed25519PublicKey.from_public_bytes(bytes.fromhex(RECORDED["public_key"]))


def old_ring(role, owner):
    return KeyRing({"old-key": PublicKey(role, owner, KEY)})


@pytest.fixture
def old(make_world):
    """A world with one more lane, whose first shard has the id that the recorded frames name."""
    world = make_world(a_lane("lane-a", slots=1), a_lane("lane-b", slots=1, models=("m2",)))
    world.batch_of_four = world.take_in(some_lines(4))
    (shard,) = world.dispatch()
    assert shard.lane == "lane-a"

    def rename(connection):
        connection.execute(text("PRAGMA defer_foreign_keys = ON"))
        for table in ("shard", "shard_span", "outbox"):
            statement = text(f"UPDATE {table} SET shard_id = :to WHERE shard_id = :from")
            connection.execute(statement, {"to": SHARD, "from": shard.shard_id})

    world.database.write(rename)
    world.ring = old_ring(KeyRole.LANE, "lane-a")
    world.counter = LeaseCounter(world.door, world.ring, world.clock)
    parts = {"database": world.database, "lanes": world.lanes, "clock": world.clock, "wakeups": world.wakeups}
    world.recorder = Recorder(ring=world.ring, health=world.health, **parts)
    return world


def posted(world, frame):
    """What the lease door answers, as the bytes that go out."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": frame}

    async def send(message):
        sent.append(message)

    asyncio.run(world.counter({}, receive, send))
    assert sent[0]["status"] == 200
    return b"".join(message.get("body", b"") for message in sent[1:])


def as_old(kind, data):
    return msgspec.msgpack.decode(data, type=kind)


# ------------------------------------------------------------------------------------- an old worker, this broker


def test_the_lease_door_is_where_old_workers_knock():
    assert (LEASES_BEFORE, LEASES) == ("/v1/leases", "/broker/v1/leases")


def test_an_old_worker_is_served_from_its_first_word_to_its_last(old):
    """It starts, claims, renews, reports two pieces of results, hands the rest back, and leaves."""
    assert as_old(wire.PresenceAnswer, posted(old, FRAMES["starts"])).now_us == old.clock()
    assert old.count(worker) == 0
    posted(old, FRAMES["ready"])
    assert [(row.worker_id, row.lane, row.slots) for row in old.rows(worker)] == [("old-host-17-1", "lane-a", 2)]
    assert [row.resource_id for row in old.rows(instance)] == ["vm-17"]

    granted, refused = as_old(list[wire.ClaimAnswer], posted(old, FRAMES["claims"]))
    assert (granted.granted, granted.lease_seconds, granted.cancelled) == (True, 15.0, False)
    assert not refused.granted
    assert as_old(wire.RenewAnswer, posted(old, FRAMES["renews"])).granted
    assert as_old(wire.UploadAnswer, posted(old, FRAMES["asks for an upload"])) == wire.UploadAnswer()
    (shard,) = old.all_shards().values()
    assert (shard.state, shard.worker_id) == (ShardState.RUNNING, "old-host-17-1")

    events = [Message("lane.lane-a.events", FRAMES[name]) for name in ("first results", "second results")]
    old.recorder.record(events)
    old.recorder.record([*events, Message("lane.lane-a.events", FRAMES["hands back"])])
    (shard,) = old.all_shards().values()
    assert shard.state is ShardState.RETURNED
    assert old.counts(old.batch_of_four.batch_id).succeeded == 2
    kept = {row.shard_index: row for row in old.rows(attempt)}
    assert {index: (row.outcome, row.accelerator_us) for index, row in kept.items() if index < 3} == {
        0: ("succeeded", 1_000),
        1: ("failed", 1_000),
        2: ("succeeded", 1_000),
    }
    assert (kept[0].request_digest, kept[0].reply_digest) == (b"q" * 32, b"r" * 32)
    assert old.waiting_jobs() == 2  # the failed one and the one that never ran
    assert old.verified().faults == []

    posted(old, FRAMES["leaves"])
    posted(old, FRAMES["has gone"])
    assert [row.left_us is None for row in old.rows(worker)] == [False]


def test_an_old_workers_word_counts_for_its_own_lane_alone(old):
    """The other lane's key, on the same bytes, is refused: nothing was loosened for old workers."""
    old.counter = LeaseCounter(old.door, old_ring(KeyRole.LANE, "lane-b"), old.clock)
    with pytest.raises(Exception, match="the key is lane lane-b's"):
        posted(old, FRAMES["claims"])


def test_an_old_worker_reads_this_brokers_orders(old):
    sent = []

    class Publisher:
        def publish_shards(self, queue, envelopes):
            sent.extend(envelopes)

    signer, _ = a_signer("broker-key")
    Relay(old.database, old.lanes, dict.fromkeys(("lane-a", "lane-b"), Publisher()), signer, old.clock).step()
    (envelope,) = sent
    content = as_old(wire.Content, as_old(tuple[bytes, bytes], envelope)[0])
    assert (content.version, content.kind, content.audience) == (2, "shard", "lane-a")
    order = as_old(wire.RunShard, content.body)
    assert (order.shard_id, order.lane, order.tenant_id, len(order.jobs)) == (SHARD, "lane-a", "t", 4)
    assert all(len(job.job_id) == 16 and job.body and job.salt for job in order.jobs)
    assert (order.exclusive, order.beside) == (False, False)


# ------------------------------------------------------------------------------------- this worker, an old broker


def test_a_worker_of_today_reads_an_old_brokers_orders():
    ring = old_ring(KeyRole.BROKER, "broker")
    order = open_shard(ring, bytes.fromhex(RECORDED["order"]), RECORDED["now_us"]).body
    assert (order.shard_id, order.lane, order.exclusive, order.beside) == (SHARD, "lane-a", True, False)
    assert [job.body for job in order.jobs] == [b"{}"]


@pytest.mark.parametrize(
    "said",
    [
        ClaimShards((SHARD, b"?" * 16), "lane-a", "w1"),
        RenewLease(SHARD, "lane-a", "w1", Bitmap.of([0, 9]).to_bytes()),
        AskToPark(SHARD, "lane-a", "w1", b"d" * 32, 300_000),
        WorkerPresence("w1", "lane-a", 2, resource_id="vm-1"),
        WorkerPresence("w1", "lane-a", 2, leaving=True, gone=True),
    ],
    ids=lambda said: type(said).__name__,
)
def test_an_old_broker_reads_what_a_worker_of_today_asks(said):
    envelope = seal(a_signer()[0], Kind.LEASE, "broker", said, now_us=1, valid_us=2)
    content = as_old(wire.Content, as_old(tuple[bytes, bytes], envelope)[0])
    assert (content.version, content.kind) == (2, "lease")
    read = as_old(wire.Question, content.body)
    assert {name: getattr(said, name) for name in read.__struct_fields__} == msgspec.structs.asdict(read)


def test_an_old_broker_reads_the_events_of_a_worker_of_today(old):
    (shard,) = old.all_shards().values()
    for said in (old.ran(shard, a_job_ran(0), a_failure(1)), old.returned(shard)):
        read = as_old(wire.Event, msgspec.msgpack.encode(said))
        if isinstance(said, ShardReturned):
            assert (read.shard_id, read.reason) == (SHARD, ErrorCode.PREEMPTED)
            continue
        assert [(job.index, job.outcome, job.error_code) for job in read.jobs] == [
            (0, "succeeded", None),
            (1, "failed", "engine_failed"),
        ]
        assert read.jobs[0].usage.output_tokens == 2


def test_the_envelope_is_the_one_that_both_read():
    assert ENVELOPE_VERSION == 2
