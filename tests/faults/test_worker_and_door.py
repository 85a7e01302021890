"""A worker whose door is not up yet, and one whose key the broker no longer takes: what it says, and what is left."""

from __future__ import annotations

import re
import threading
import time
import uuid
from pathlib import Path

import pytest
from sqlalchemy import select

from broker.api.app import make_app
from broker.api.desk import Desk
from broker.api.leases import LeaseCounter
from broker.api.server import Door, listen
from broker.api.tokens import local_token
from broker.bootstrap.embedded import Embedded
from broker.bus.envelope import Kind, seal
from broker.bus.publisher import Publisher
from broker.bus.redis_queues import RedisQueues
from broker.clock import utc_now_us
from broker.database import shards
from broker.database.instances import find_instances
from broker.database.tables import shard
from broker.domain.ids import new_id
from broker.domain.instance import InstanceState
from broker.domain.shard import ShardSpan, ShardState
from broker.keys import load_or_create_signer, public_bytes, trust_text
from broker.leasing import LeaseDoor
from broker.signing import KeyRing, KeyRole, PublicKey
from tests.flow.program import Program, kill_group, lane
from tests.services.process import free_port
from tests.unit.builders import a_lane, an_order

MINUTE_US = 60_000_000


class Stand:
    """A lane on real Redis, its keys, and the broker's door on a real database; the worker is a process of its own."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.redis_url = redis_url
        self.name = f"lane-{uuid.uuid4().hex[:10]}"
        self.program = Program(folder)
        options = {"delay_seconds": 60.0}
        self.program.catalog.write_text(lane(self.name, "azure-gpu", bus_url=redis_url, slots=1, options=options))
        self.broker, broker_private = load_or_create_signer(folder, "broker")
        signer, private = load_or_create_signer(folder, "lane")
        (folder / "broker.pub").write_text(trust_text([(self.broker.key_id, public_bytes(broker_private))]))
        self.ring = KeyRing({signer.key_id: PublicKey(KeyRole.LANE, self.name, private.public_key())})
        self.embedded = Embedded(folder / "broker", [a_lane(self.name)])
        self.database = self.embedded.database
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.door: Door | None = None
        self.said: list[str] = []

    def open_door(self) -> None:
        counter = LeaseCounter(LeaseDoor(self.database, utc_now_us), self.ring, utc_now_us)
        app = make_app(Desk(self.embedded.front, 10, 1_000), local_token("ib_token"), leases=counter)
        self.door = Door(app, listen("127.0.0.1", self.port))
        self.door.start()

    def start_worker(self, *more):
        words = [
            "worker",
            "--lane",
            self.name,
            "--url",
            self.url,
            "--key",
            "lane.key",
            "--trusted",
            "broker.pub",
            *more,
        ]
        process = self.program.start(*words, "--catalog", str(self.program.catalog))
        threading.Thread(target=lambda: self.said.extend(process.stdout), daemon=True).start()
        return process

    def send_shards(self, count: int) -> list[bytes]:
        orders = [an_order(lane=self.name) for _ in range(count)]
        now_us = utc_now_us()
        records = [
            shards.ShardRecord(
                shard_id=order.shard_id, tenant_id="t", group_id=new_id(), batch_id=None, lane=self.name,
                assignment_id=None, reason="the test", jobs_count=1, created_us=now_us, hold_nano_usd=0,
                claim_by_us=now_us + MINUTE_US,
                spans=[ShardSpan(0, order.jobs[0].job_id, 1, 1, 0, 0, False, 100, now_us + MINUTE_US)],
            )
            for order in orders
        ]  # fmt: skip
        self.database.write(lambda connection: shards.write_shards(connection, records))
        sealed = [
            seal(self.broker, Kind.SHARD, self.name, order, now_us=now_us, valid_us=10 * MINUTE_US) for order in orders
        ]
        publisher = Publisher(self.redis_url)
        publisher.publish_shards(f"lane.{self.name}.shards", sealed)
        publisher.close()
        return [order.shard_id for order in orders]

    def states(self, shard_ids):
        chosen = select(shard.c.state).where(shard.c.shard_id.in_(shard_ids))
        return list(self.database.read(lambda connection: connection.execute(chosen).scalars().all()))

    def instance(self, after_seconds: float = 0.0):
        """The one instance as it is known, or will be."""
        now_us = utc_now_us() + round(after_seconds * 1_000_000)
        found = self.database.read(
            lambda connection: find_instances(connection, now_us, self.name, ended=True, limit=10)
        )
        assert len(found) <= 1
        return found[0] if found else None

    def waiting_messages(self) -> int:
        import redis

        with redis.Redis.from_url(self.redis_url) as client:
            return RedisQueues(client).size(f"lane.{self.name}.shards")

    def close(self) -> None:
        if self.door:
            self.door.stop()
        self.embedded.stop()
        import redis

        with redis.Redis.from_url(self.redis_url) as client:
            for key in client.scan_iter(f"*{self.name}*"):
                client.delete(key)


@pytest.fixture
def stand(tmp_path, redis_url):
    made = Stand(tmp_path, redis_url)
    yield made
    made.close()


def _until(condition, process, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_worker_that_starts_before_the_door_waits_says_so_and_works(stand):
    process = stand.start_worker()
    try:
        _until(lambda: stand.said, process)
        assert stand.said == [f"Waiting for the broker at {stand.url}: the broker can't be asked: ConnectError\n"]
        time.sleep(1.5)
        assert process.poll() is None
        stand.open_door()
        _until(lambda: any(line.startswith("Ready: lane") for line in stand.said), process)
        process.terminate()
        assert process.wait(20) == 0
    finally:
        kill_group(process)


def test_a_worker_that_waits_for_the_door_ends_when_it_is_told_to(stand):
    process = stand.start_worker()
    try:
        _until(lambda: stand.said, process)
        process.terminate()
        assert process.wait(10) == 0
    finally:
        kill_group(process)


def test_an_instance_is_known_from_its_start_to_its_end(stand):
    stand.open_door()
    process = stand.start_worker("--resource-id", "//compute.example/vm-1")
    try:
        _until(lambda: (one := stand.instance()) and one.state is InstanceState.RUNNING, process)
        (shard_id,) = stand.send_shards(1)
        _until(lambda: stand.states([shard_id]) == [ShardState.RUNNING], process)
        process.terminate()
        assert process.wait(20) == 0
    finally:
        kill_group(process)
    one = stand.instance()
    assert (one.state, one.resource_id, one.slots) == (InstanceState.STOPPED, "//compute.example/vm-1", 1)
    assert one.started_us <= one.ready_us < one.draining_us < one.stopped_us == one.last_seen_us


def test_an_instance_that_is_killed_is_lost(stand):
    stand.open_door()
    process = stand.start_worker()
    try:
        _until(lambda: (one := stand.instance()) and one.state is InstanceState.RUNNING, process)
    finally:
        kill_group(process)
    assert stand.instance(14).state is InstanceState.RUNNING
    lost = stand.instance(21)
    assert (lost.state, lost.stopped_us) == (InstanceState.LOST, None)
    assert re.fullmatch(r".+@\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", lost.resource_id)


def test_a_worker_whose_key_was_revoked_says_so_once_and_gives_back_what_it_had_not_begun(stand):
    stand.open_door()
    process = stand.start_worker()
    try:
        _until(lambda: any(line.startswith("Ready") for line in stand.said), process)
        running, *rest = stand.send_shards(3)
        _until(lambda: ShardState.RUNNING in stand.states([running, *rest]), process)
        stand.ring.replace({})
        began = time.monotonic()
        assert process.wait(60) == 1
        seconds = time.monotonic() - began
        sentence = process.stderr.read().splitlines()[-1]
    finally:
        kill_group(process)
    assert 15 <= seconds < 40, seconds
    assert re.fullmatch(
        f"error: lane {stand.name} can't work: the broker at {stand.url} refuses it .this is not a lane's signed "
        "question: signed with the unknown key '[0-9a-f]{16}'.; `broker keys list` shows which keys are in force",
        sentence,
    ), sentence
    assert stand.waiting_messages() == 2
    assert sorted(stand.states([running, *rest])) == [ShardState.RUNNING, ShardState.SENT, ShardState.SENT]


def test_a_worker_whose_key_the_broker_never_knew_says_so_at_its_start(stand):
    stand.ring.replace({})
    stand.open_door()
    process = stand.start_worker()
    try:
        assert process.wait(60) == 1
        assert "refuses it" in process.stderr.read().splitlines()[-1]
    finally:
        kill_group(process)
    assert stand.said[0].startswith("Waiting for the broker")
