"""PostgreSQL is killed and started again while many write: what was counted is what was answered, exactly."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import insert, select, update

from broker.database.drivers.postgres.database import PostgresDatabase, PostgresTerms
from broker.database.tables import tenant
from tests.services.private_postgres import PrivatePostgres
from tests.upgraded import upgrade_postgres


@pytest.fixture
def server():
    with PrivatePostgres() as made:
        yield made


@pytest.mark.slow
def test_a_server_killed_under_load_loses_nothing_and_doubles_nothing(server):
    upgrade_postgres(server.url)
    database = PostgresDatabase(server.url, PostgresTerms(retry_seconds=60.0))
    names = [f"t{number}" for number in range(4)]
    database.write(
        lambda connection: connection.execute(insert(tenant), [{"tenant_id": n, "created_us": 0} for n in names])
    )
    stop = threading.Event()

    def count(name):
        """Each write adds one, and answers with the sum: a lost one or a double would show as a gap."""
        answers = []

        def work(connection):
            change = update(tenant).where(tenant.c.tenant_id == name).values(created_us=tenant.c.created_us + 1)
            return connection.execute(change.returning(tenant.c.created_us)).scalar_one()

        while not stop.is_set():
            answers.append(database.write(work))
        return answers

    with ThreadPoolExecutor(4) as pool:
        counting = [pool.submit(count, name) for name in names]
        for _ in range(3):
            time.sleep(0.7)
            server.kill()
            server.start()
        time.sleep(0.7)
        stop.set()
        answers = [one.result(90) for one in counting]
    assert all(found == list(range(1, len(found) + 1)) for found in answers)
    assert all(len(found) > 20 for found in answers)
    kept = database.read(
        lambda connection: dict(connection.execute(select(tenant.c.tenant_id, tenant.c.created_us)).all())
    )
    assert kept == {name: len(found) for name, found in zip(names, answers, strict=True)}
    database.close()
