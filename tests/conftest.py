"""Probes for the services that some tests need.

Asking for `postgres_url`, `rabbitmq_url` or `redis_url` marks the test. Where the service doesn't answer the
test skips and says why; with BROKER_REQUIRE_SERVICES=1 it fails instead, so that CI can't pass by skipping.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from sqlalchemy import Connection, Engine, event

PROBE_SECONDS = 3


class CompiledOnce(dict):
    """SQLAlchemy's statements as compiled for one kind of database, for all of a run's engines.

    Each engine keeps its own otherwise, and as nearly every test has a database of its own, compiling the same few
    hundred statements again and again took a fifth of their CPU.
    """

    def get(self, key: tuple[Any, ...], default: Any = None) -> Any:
        return super().get(_of_kind(key), default)

    def __setitem__(self, key: tuple[Any, ...], compiled: Any) -> None:
        super().__setitem__(_of_kind(key), compiled)


def _of_kind(key: tuple[Any, ...]) -> tuple[Any, ...]:
    dialect, *rest = key
    return (dialect.name, dialect.driver, *rest)


_compiled = CompiledOnce()


@event.listens_for(Engine, "engine_connect")
def _share_compiled_statements(connection: Connection) -> None:
    connection.execution_options(compiled_cache=_compiled)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for service in ("postgres", "rabbitmq", "redis"):
            if f"{service}_url" in getattr(item, "fixturenames", ()):
                item.add_marker(service)


def absent(service: str, url: str, variable: str, error: Exception) -> None:
    reason = f"no {service} at {urlsplit(url).hostname} (set {variable} to name another): {error}".strip()
    if os.environ.get("BROKER_REQUIRE_SERVICES") == "1":
        pytest.fail(f"BROKER_REQUIRE_SERVICES=1, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def postgres_server_url() -> str:
    import psycopg

    variable = "BROKER_TEST_POSTGRES_URL"
    url = os.environ.get(variable, "postgresql://postgres@127.0.0.1:5432/test")
    try:
        psycopg.connect(url, connect_timeout=PROBE_SECONDS).close()
    except psycopg.OperationalError as error:
        absent("PostgreSQL", url, variable, error)
    return url


@pytest.fixture(scope="module")
def postgres_url(postgres_server_url: str) -> Iterator[str]:
    """A database of the test module's own, empty at first, dropped at its end."""
    import psycopg

    name = f"broker_test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_server_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
        yield urlunsplit(urlsplit(postgres_server_url)._replace(path=f"/{name}"))
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def rabbitmq_url() -> str:
    import kombu

    variable = "BROKER_TEST_RABBITMQ_URL"
    url = os.environ.get(variable, "amqp://guest:guest@127.0.0.1:5672//")
    try:
        with kombu.Connection(url, connect_timeout=PROBE_SECONDS) as connection:
            connection.connect()
    except (OSError, *kombu.Connection(url).connection_errors) as error:
        absent("RabbitMQ", url, variable, error)
    return url


@pytest.fixture(scope="session")
def redis_url() -> str:
    variable = "BROKER_TEST_REDIS_URL"
    url = os.environ.get(variable, "redis://127.0.0.1:6379/15")
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname, parts.port or 6379), PROBE_SECONDS) as connection:
            connection.sendall(b"PING\r\n")
            if connection.recv(64)[:5] not in {b"+PONG", b"-NOAU"}:
                raise ConnectionError("what answers there is not Redis")
    except OSError as error:
        absent("Redis", url, variable, error)
    return url
