"""The servers that tests share: where they are looked for, and whether one answers there as the tests need it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

__all__ = ["SHARED", "Absent", "Shared"]

PROBE_SECONDS = 3


class Absent(Exception):
    """No server that the tests could use; why, in one sentence."""


class Shared(NamedTuple):
    """`variable` names another server than the usual one. `probe` takes a URL and raises where nothing can be used."""

    name: str
    variable: str
    usual_url: str
    probe: Callable[[str], None]

    def url(self) -> str:
        """Where it answers. Raises Absent."""
        url = os.environ.get(self.variable, self.usual_url)
        try:
            self.probe(url)
        except Exception as error:
            host = urlsplit(url).hostname
            reason = " ".join(str(error).split())
            raise Absent(f"no {self.name} at {host} (set {self.variable} to name another): {reason}") from error
        return url


def _ask_postgres(url: str) -> None:
    import psycopg

    psycopg.connect(url, connect_timeout=PROBE_SECONDS).close()


def _ask_rabbitmq(url: str) -> None:
    import kombu

    with kombu.Connection(url, connect_timeout=PROBE_SECONDS) as connection:
        connection.connect()


def _ask_redis(url: str) -> None:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port or 6379), PROBE_SECONDS) as connection:
        connection.sendall(b"PING\r\n")
        if connection.recv(64)[:5] not in {b"+PONG", b"-NOAU"}:
            raise ConnectionError("what answers there is not Redis")


SHARED = {
    "postgres": Shared(
        "PostgreSQL", "BROKER_TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/test", _ask_postgres
    ),
    "rabbitmq": Shared("RabbitMQ", "BROKER_TEST_RABBITMQ_URL", "amqp://guest:guest@127.0.0.1:5672//", _ask_rabbitmq),
    "redis": Shared("Redis", "BROKER_TEST_REDIS_URL", "redis://127.0.0.1:6379/15", _ask_redis),
}
