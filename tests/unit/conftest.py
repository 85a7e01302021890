"""A database of its own for each test, migrated once and copied, and a world of stages on it."""

from __future__ import annotations

import shutil

import pytest
import structlog
from hypothesis import HealthCheck, settings

from broker.bootstrap.data_folder import DATABASE_FILE, open_database
from tests.unit.builders import World, a_lane

# Few examples, so that the whole folder takes seconds; a machine under load is no failure.
settings.register_profile(
    "unit",
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("unit")


@pytest.fixture(autouse=True)
def quiet():
    """Stages log every step; writing all of it would take longer than the tests."""
    structlog.configure(processors=[_drop])
    yield
    structlog.reset_defaults()


def _drop(*_):
    raise structlog.DropEvent


@pytest.fixture(scope="session")
def migrated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("migrated")
    open_database(folder).close()
    return folder / DATABASE_FILE


@pytest.fixture
def data(tmp_path, migrated):
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copy(migrated, folder / DATABASE_FILE)
    return folder


@pytest.fixture
def database(data):
    opened = open_database(data)
    yield opened
    opened.close()


@pytest.fixture
def make_world(data):
    """Worlds one after another, each on a database that was just made."""
    opened = []

    def make(*lanes):
        folder = data / f"world-{len(opened)}"
        folder.mkdir()
        shutil.copy(data / DATABASE_FILE, folder / DATABASE_FILE)
        database = open_database(folder)
        opened.append(database)
        return World(database, lanes or [a_lane()], folder)

    yield make
    for database in opened:
        database.close()


@pytest.fixture
def world(database, data):
    return World(database, [a_lane()], data)
