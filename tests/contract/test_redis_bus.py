"""Redis against the contract, and what it promises beyond."""

from __future__ import annotations

import time
import uuid

import pytest
import redis

from broker.bus.driver import BusUnavailable, MessageRefused, PublishError
from broker.bus.inbox import Inbox
from broker.bus.publisher import Publisher
from broker.bus.redis_queues import RedisQueues, bell_of
from tests.contract.bus_contract import BusContract
from tests.contract.bus_under_test import Features, received
from tests.contract.worker_contract import WorkerContract
from tests.services.private_redis import PrivateRedis

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


@pytest.fixture
def queues(redis_url, redis_prefix):
    return RedisQueues(redis.Redis.from_url(redis_url), f"{redis_prefix}{uuid.uuid4().hex[:6]}:")


def test_a_batch_fills_a_queue_to_its_bound_and_says_how_far(queues):
    assert queues.push("q", [b"1", b"2", b"3"], size_max=2) == 2
    assert queues.push("q", [b"3"], size_max=2) == 0
    assert [taken.data for taken in queues.take("q", 5)] == [b"1", b"2"]


def test_what_is_taken_is_noted_in_the_same_step_and_comes_back_when_it_is_not_renewed(queues):
    queues.push("q", [b"1", b"2"], 10)
    first, second = queues.take("q", 2)
    assert queues.sweep(5.0) == 0
    time.sleep(0.2)
    queues.renew([first.tag])
    assert queues.sweep(0.15) == 1
    (again,) = queues.take("q", 5)
    assert (again.data, again.attempts) == (b"2", second.attempts + 1)
    queues.acknowledge([second.tag])  # a tag names a delivery, not a message
    queues.give_back([again.tag])
    assert queues.size("q") == 1


def test_messages_given_back_keep_their_place(queues):
    queues.push("q", [b"1", b"2", b"3"], 10)
    queues.give_back([taken.tag for taken in queues.take("q", 2)])
    assert [taken.data for taken in queues.take("q", 3)] == [b"1", b"2", b"3"]


def test_dead_letters_keep_their_bytes_and_reason(queues):
    raw = bytes(range(256))
    queues.push("q", [raw], 10)
    (taken,) = queues.take("q", 1)
    queues.dead_letter([taken.tag], "rejected")
    assert queues.dead_letters("q") == [(raw, "rejected")]
    assert queues.take("q", 1) == []
    assert queues.sweep(0.0) == 0


def test_a_server_that_hangs_is_unavailable_in_time_and_one_that_is_full_refuses():
    with PrivateRedis() as server:
        publisher = Publisher(server.url, {"socket_timeout": 1.0})
        publisher.publish_events("q", [b"before"])
        server.pause()
        began = time.monotonic()
        with pytest.raises(BusUnavailable, match="before it confirmed"):
            publisher.publish_events("q", [b"1", b"2"])
        assert time.monotonic() - began < 10
        server.resume()
        redis.Redis.from_url(server.url).config_set("maxmemory", "1mb")
        with pytest.raises(PublishError, match="Redis refused it") as caught:
            publisher.publish_events("q", [b"3", b"4"])
        assert all(isinstance(error, MessageRefused) for error in caught.value.errors.values())
        publisher.close()


def test_a_lost_ring_costs_a_second_and_no_message(redis_url, redis_prefix, queues):
    options = {"global_keyprefix": redis_prefix}
    name = f"ring-{uuid.uuid4().hex[:6]}"
    publisher, inbox = Publisher(redis_url, options), Inbox(redis_url, [name], 10, options)
    publisher.publish_events(name, [b"1"])
    redis.Redis.from_url(redis_url).delete(redis_prefix + bell_of(name))
    (delivery,) = received(inbox, 1, 5)
    inbox.acknowledge([delivery])
    assert delivery.envelope == b"1"
    inbox.close()
    publisher.close()
