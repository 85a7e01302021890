"""The buses of a stand: a server of each kind, how a catalog names it, and what it is for it to be lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import redis

from tests.services.private_emulator import PrivateOciQueue, PrivateServiceBus
from tests.services.private_pubsub import PrivatePubSub
from tests.services.private_rabbit import PrivateRabbit
from tests.services.private_redis import PrivateRedis

__all__ = ["BUSES", "StandBus"]

# A private server, whatever its kind.
Server = Any


class StandBus(msgspec.Struct, frozen=True):
    """One kind of bus.

    `lose` takes from it what it may lose: all it holds, or for one that keeps what it confirmed its process.
    `restore` brings it back as far as its keeper would; queues that are gone then are made by `broker bus apply`.
    `waiting` counts messages of these queues; None where nobody can ask.
    """

    new: Callable[[], Server]
    lose: Callable[[Server], None]
    restore: Callable[[Server], None] = lambda _server: None
    forgets: bool = True
    needs_apply: bool = True
    waiting: Callable[[Server, Sequence[str]], int | None] = lambda _server, _names: None

    def catalog_url(self, server: Server) -> str:
        """Its URL with a place for the port, which a proxy may have."""
        url: str = server.url
        return url.replace(str(server.port), "${BUS_PORT}")


def _add_vhost(server: PrivateRabbit) -> None:
    server.control("add_vhost", "/")
    server.control("set_permissions", "-p", "/", "guest", ".*", ".*", ".*")


def _waiting_on_rabbit(server: PrivateRabbit, names: Sequence[str]) -> int:
    rows = [line.split() for line in server.control("list_queues", "name", "messages").splitlines()]
    return sum(int(row[1]) for row in rows if row and row[0] in names)


def _flush(server: PrivateRedis) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()


def _waiting_on_redis(server: PrivateRedis, names: Sequence[str]) -> int:
    with redis.Redis.from_url(server.url) as client:
        return sum(client.llen(name) for name in names)


BUSES = {
    "amqp": StandBus(
        PrivateRabbit,
        lambda server: server.control("delete_vhost", "/"),
        _add_vhost,
        waiting=_waiting_on_rabbit,
    ),
    "redis": StandBus(PrivateRedis, _flush, needs_apply=False, waiting=_waiting_on_redis),
    "pubsub": StandBus(PrivatePubSub, lambda server: server.kill(), lambda server: server.start()),
    "servicebus": StandBus(
        PrivateServiceBus, lambda server: server.kill(), lambda server: server.start(), forgets=False
    ),
    "ociqueue": StandBus(PrivateOciQueue, lambda server: server.kill(), lambda server: server.start(), forgets=False),
}
