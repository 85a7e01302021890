"""Redis against the contract, and what it promises beyond."""

from __future__ import annotations

import pytest
import redis

from broker.bus.redis_queues import RedisQueues
from tests.contract.bus_contract import BusContract
from tests.contract.bus_under_test import Features
from tests.contract.worker_contract import WorkerContract

LEASE_SECONDS = 2.0
MESSAGE_BYTES_MAX = 1_000_000


def features_of(url, prefix="", **more):
    client = redis.Redis.from_url(url)
    return Features(
        url=url,
        options={
            "visibility_timeout": LEASE_SECONDS,
            "max_message_bytes": MESSAGE_BYTES_MAX,
            "global_keyprefix": prefix,
        },
        lease_seconds=LEASE_SECONDS,
        message_bytes_max=MESSAGE_BYTES_MAX,
        unreachable_url="redis://127.0.0.1:1/0",
        inject=lambda queue, data: RedisQueues(client, prefix).push(queue, [data], 1_000),
        dead_letters=RedisQueues(client, prefix).dead_letters,
        three_attempts={"max_attempts": 3},
        queues_appear_by_themselves=True,
        **more,
    )


class OnRedis:
    @pytest.fixture
    def features(self, redis_url, redis_prefix):
        return features_of(redis_url, redis_prefix)

    @pytest.fixture
    def private_features(self, private_redis):
        def restart():
            private_redis.kill()
            private_redis.start()

        return features_of(private_redis.url, isolated_url=private_redis.url[:-1] + "1", restart=restart)


class TestRedisBus(OnRedis, BusContract):
    """All cases of a bus."""

    @pytest.mark.xfail(
        strict=True,
        reason="a lease is renewed by its consumer's loop and this holder's stands still; a worker's runs on (C27)",
    )
    def test_c11_a_long_held_message_stays_ours(self, bus):
        super().test_c11_a_long_held_message_stays_ours(bus)


class TestRedisWorker(OnRedis, WorkerContract):
    """All cases of a worker."""
