"""Fixtures of the contracts, and the matrix of their results."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from tests.contract.bus_under_test import Bus
from tests.contract.matrix import Matrix, page, record
from tests.contract.worker_contract import Lane
from tests.services.private_pubsub import PrivatePubSub
from tests.services.private_rabbit import PrivateRabbit
from tests.services.private_redis import PrivateRedis

PAGE = Path(__file__).parents[2] / "docs" / "contract.md"
MATRIX = pytest.StashKey[Matrix]()


@pytest.fixture
def bus(features):
    under_test = Bus(features)
    yield under_test
    under_test.close()


@pytest.fixture
def private_bus(private_features):
    under_test = Bus(private_features)
    yield under_test
    under_test.close()


@pytest.fixture
def lane(features):
    under_test = Lane(features)
    yield under_test
    under_test.close()


@pytest.fixture(scope="session")
def private_rabbit():
    with PrivateRabbit() as server:
        server.control("add_vhost", "elsewhere")
        server.control("set_permissions", "-p", "elsewhere", "guest", ".*", ".*", ".*")
        yield server


@pytest.fixture(scope="session")
def private_pubsub():
    with PrivatePubSub() as server:
        yield server


@pytest.fixture(scope="session")
def private_redis():
    with PrivateRedis() as server:
        yield server


@pytest.fixture(scope="session")
def redis_prefix(redis_url):
    """Keys of this run alone, removed at its end: the server may be someone else's too."""
    import redis

    prefix = f"contract-{uuid.uuid4().hex[:8]}:"
    yield prefix
    client = redis.Redis.from_url(redis_url)
    for key in client.scan_iter(f"{prefix}*"):
        client.delete(key)


def pytest_configure(config):
    config.stash[MATRIX] = Matrix()
    config.pluginmanager.register(config.stash[MATRIX], "contract-matrix")


def pytest_terminal_summary(terminalreporter, config):
    matrix = config.stash[MATRIX]
    if not matrix.cells:
        return
    terminalreporter.section("contract")
    for line in matrix.lines():
        terminalreporter.write_line(line)
    if os.environ.get("BROKER_WRITE_MATRIX") == "1":
        PAGE.write_text(page(record(matrix), PAGE.read_text()))
        terminalreporter.write_line(f"written to {PAGE}")
