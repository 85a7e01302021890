"""Probes for the services that some tests need.

Asking for `postgres_url`, `rabbitmq_url` or `redis_url` marks the test. Where the service doesn't answer the
test skips and says why; with BROKER_REQUIRE_SERVICES=1 it fails instead, so that CI can't pass by skipping.
"""

from __future__ import annotations

import gc
import os
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from sqlalchemy import Connection, Engine, event

from tests.services.probing import SHARED, Absent

REQUIRED = "BROKER_REQUIRE_SERVICES"
MISSING = re.compile(r"no (.+?) (?:at|to start)\b")
"""How a test's reason to skip begins where a server doesn't answer, or its program isn't installed."""


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


def pytest_collection_finish() -> None:
    """What was loaded and collected stays to the end: nobody need look through it again and again for garbage."""
    gc.collect()
    gc.freeze()


def usable(kind: str) -> str:
    """The URL of a shared server; without one the test skips, or fails where skipping isn't wanted."""
    try:
        return SHARED[kind].url()
    except Absent as absent:
        if os.environ.get(REQUIRED) == "1":
            pytest.fail(f"{REQUIRED}=1, but {absent}", pytrace=False)
        pytest.skip(str(absent))


def untested(reasons: Iterable[str]) -> list[str]:
    """A line for each service that was missing, with how many tests skipped for it, of what skipped tests gave."""
    missing = Counter(found[1] for reason in reasons if (found := MISSING.match(reason)))
    return [
        f"NOT TESTED: {count} test{'s' if count > 1 else ''} skipped, as there is no {service} here"
        f" ({REQUIRED}=1 makes that an error)"
        for service, count in missing.most_common()
    ]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Last of all, below the list of what skipped: nobody reads that to its end."""
    yield
    skipped = terminalreporter.stats.get("skipped", [])
    for line in untested(report.longrepr[2].removeprefix("Skipped: ") for report in skipped):
        terminalreporter.write_line(line, red=True, bold=True)


@pytest.fixture(scope="session")
def postgres_server_url() -> str:
    return usable("postgres")


@pytest.fixture(scope="session")
def rabbitmq_url() -> str:
    return usable("rabbitmq")


@pytest.fixture(scope="session")
def redis_url() -> str:
    return usable("redis")


@pytest.fixture(scope="module")
def postgres_url(postgres_server_url: str) -> Iterator[str]:
    """A database of the test module's own, empty at first, dropped at its end."""
    import psycopg

    name = f"broker_test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_server_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
        yield urlunsplit(urlsplit(postgres_server_url)._replace(path=f"/{name}"))
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
