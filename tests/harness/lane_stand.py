"""A lane on real Redis with the broker's door before a real database, and its worker as a process of its own."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path
from typing import Any

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
from broker.domain.shard import ShardSpan
from broker.keys import load_or_create_signer, public_bytes, trust_text
from broker.leasing import LeaseDoor
from broker.signing import KeyRing, KeyRole, PublicKey
from tests.flow.program import Program, lane
from tests.services.process import free_port
from tests.unit.builders import a_lane, an_order

__all__ = ["MINUTE_US", "LaneStand"]

MINUTE_US = 60_000_000


class LaneStand:
    """A lane on real Redis, its keys, and the broker's door on a real database; the worker is a process of its own."""

    def __init__(self, folder: Path, redis_url: str, **fields: Any) -> None:
        self.redis_url = redis_url
        self.name = f"lane-{uuid.uuid4().hex[:10]}"
        self.program = Program(folder)
        settings = {"concurrency": 1, "options": {"delay_seconds": 60.0}, **fields}
        self.program.catalog.write_text(lane(self.name, "azure-gpu", bus_url=redis_url, **settings))
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
