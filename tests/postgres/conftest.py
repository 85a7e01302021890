"""The unit tests' database and world, on PostgreSQL: one migrated database to a session, emptied for each test."""

from __future__ import annotations

import uuid
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from broker.database.drivers.postgres.database import PostgresDatabase, PostgresTerms
from broker.database.types import metadata
from tests.proxy import FaultProxy
from tests.unit.builders import World, a_lane
from tests.unit.conftest import quiet
from tests.upgraded import upgrade_postgres

__all__ = ["quiet"]

TERMS = PostgresTerms(name="test", pool_size=4, retry_seconds=10.0)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker("postgres")


@pytest.fixture(scope="session")
def migrated_url(postgres_server_url):
    name = f"broker_test_{uuid.uuid4().hex}"
    url = urlunsplit(urlsplit(postgres_server_url)._replace(path=f"/{name}"))
    with psycopg.connect(postgres_server_url, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        admin.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')  # the disk is not what is tested
        try:
            upgrade_postgres(url)
            yield url
        finally:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def emptied(migrated_url):
    """A function that empties the database, past the triggers that keep the ledger."""
    yield from emptying(migrated_url)


def emptying(migrated_url, *, but=()):
    deletes = "; ".join(f"DELETE FROM {name}" for name in metadata.tables if name not in {"outbox", *but})
    with psycopg.connect(migrated_url, autocommit=True) as connection:

        def empty():
            # The outbox gets new pages, so that its rows lie in the order in which they were written.
            connection.execute(
                f"BEGIN; SET LOCAL session_replication_role = replica; TRUNCATE outbox; {deletes}; COMMIT"
            )
            return migrated_url

        yield empty


@pytest.fixture
def postgres_url(emptied):
    return emptied()


@pytest.fixture
def database(postgres_url):
    opened = PostgresDatabase(postgres_url, TERMS)
    yield opened
    opened.close()


@pytest.fixture
def make_world(emptied, tmp_path):
    """Worlds one after another, each on a database that is empty; a world ends when the next is made."""
    opened = []

    def make(*lanes):
        while opened:
            opened.pop().close()
        database = PostgresDatabase(emptied(), TERMS)
        opened.append(database)
        folder = tmp_path / uuid.uuid4().hex
        folder.mkdir()
        return World(database, lanes or [a_lane()], folder)

    yield make
    while opened:
        opened.pop().close()


@pytest.fixture
def world(database, tmp_path):
    return World(database, [a_lane()], tmp_path)


@pytest.fixture
def proxy(postgres_url):
    parts = urlsplit(postgres_url)
    with FaultProxy(parts.hostname, parts.port or 5432) as made:
        yield made


@pytest.fixture
def proxied_url(postgres_url, proxy):
    """In the clear, so that the proxy can read along."""
    return proxy.url_of(postgres_url, sslmode="disable")
