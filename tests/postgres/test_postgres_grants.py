"""Each role may do its work, and is refused what it must be refused."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from broker.database.drivers.postgres import grants
from broker.database.drivers.postgres.database import PostgresDatabase, PostgresTerms, open_postgres
from broker.database.drivers.postgres.grants import grant_statements
from broker.database.types import metadata
from broker.domain.errors import BrokerError, UsageError
from broker.ledger.partitions import ensure_partitions
from broker.ledger.tables import attempt
from broker.rules.schema_fit import SchemaState
from tests.flow.forkserver import run
from tests.unit.builders import NOW_US, World, a_lane, some_lines
from tests.upgraded import upgrade_postgres

PREFIX = f"brokertest_{uuid.uuid4().hex[:8]}"
ROLES = ("owner", "writer", "reader", "auditor")


@pytest.fixture(scope="module")
def urls(postgres_server_url):
    """A database with roles of its own, and the URL of each."""
    name = f"broker_test_{uuid.uuid4().hex}"
    parts = urlsplit(postgres_server_url)
    host = parts.netloc.rpartition("@")[2]
    found = {role: urlunsplit(parts._replace(netloc=f"{PREFIX}_{role}@{host}", path=f"/{name}")) for role in ROLES}
    admin_url = urlunsplit(parts._replace(path=f"/{name}"))
    with psycopg.connect(postgres_server_url, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        try:
            upgrade_postgres(admin_url)
            for _ in range(2):  # safe to run again
                with psycopg.connect(admin_url) as connection:
                    connection.execute("; ".join(grant_statements(PREFIX)))
            yield found | {"admin": admin_url}
        finally:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
            for role in ROLES:
                admin.execute(f"DROP ROLE IF EXISTS {PREFIX}_{role}")


@pytest.fixture
def written(urls, tmp_path):
    """A batch that ran from end to end with the writer's rights alone."""
    database = open_postgres(urls["writer"], name="test")
    world = World(database, [a_lane()], tmp_path)
    batch = world.take_in(some_lines(3, uuid.uuid4().hex))
    world.run_all()
    assert world.counts(batch.batch_id).succeeded == 3
    assert world.verified().faults == []
    yield database
    database.close()


def refused(url, statement):
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        with pytest.raises(psycopg.Error) as told:
            connection.execute(statement)
    return told.value.sqlstate


def seen(url, statement):
    with psycopg.connect(url) as connection:
        return connection.execute(statement).fetchone()[0]


NO_RIGHT = "42501"


def test_every_table_has_its_class():
    classes = [*grants.APPEND_ONLY, *grants.OPERATIONAL, *grants.PRIVATE]
    assert sorted(classes) == sorted(metadata.tables)


@pytest.mark.parametrize("table", grants.APPEND_ONLY)
def test_the_writer_can_not_change_the_ledger(urls, written, table):
    column = metadata.tables[table].columns.keys()[-1]
    for statement in (f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}", f"TRUNCATE {table}"):
        assert refused(urls["writer"], statement) == NO_RIGHT
    assert seen(urls["writer"], f"SELECT count(*) FROM {table}") >= 0


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE attempt",
        "ALTER TABLE attempt DISABLE TRIGGER ALL",
        "DROP TRIGGER attempt_append_only ON attempt",
        "DELETE FROM attempt_default",
        "SELECT count(*) FROM attempt_default",
        "CREATE TABLE mine (a int)",
        "SET session_replication_role = replica",
        "UPDATE broker_schema SET version_num = '0'",
        "TRUNCATE shard",
        "CREATE ROLE friend SUPERUSER",
    ],
)
def test_the_writer_can_not_get_around_it(urls, written, statement):
    assert refused(urls["writer"], statement) == NO_RIGHT


@pytest.mark.parametrize("role", ["reader", "auditor"])
def test_who_only_reads_sees_the_ledger_and_no_prompt(urls, written, role):
    assert seen(urls[role], "SELECT count(*) FROM attempt") >= 3
    assert seen(urls[role], "SHOW default_transaction_read_only") == "on"
    assert seen(urls[role], "SHOW statement_timeout") == "5min"
    for table in grants.PRIVATE:
        assert refused(urls[role], f"SELECT count(*) FROM {table}") == NO_RIGHT
    for table in (*grants.APPEND_ONLY, *grants.OPERATIONAL):
        assert refused(urls[role], f"INSERT INTO {table} DEFAULT VALUES") == NO_RIGHT
        assert refused(urls[role], f"DELETE FROM {table}") == NO_RIGHT


def test_even_the_owner_is_refused_by_the_triggers(urls, written):
    for statement in ("UPDATE attempt SET cost_nano_usd = 0", "DELETE FROM job_outcome", "TRUNCATE attempt"):
        assert refused(urls["owner"], statement) == "23001"


def test_the_owner_makes_partitions_and_the_writer_can_not(urls, written):
    far = NOW_US + 400 * 86_400 * 1_000_000
    owner = PostgresDatabase(urls["owner"], PostgresTerms(name="keeper"))
    with pytest.raises(DBAPIError, match=r"permission denied|must be owner"):
        written.write(lambda connection: ensure_partitions(connection, far))
    made = owner.write(lambda connection: ensure_partitions(connection, far))
    assert len(made) >= 8
    assert owner.write(lambda connection: ensure_partitions(connection, far)) == []
    owner.close()


def test_keepers_at_once_make_each_partition_once_while_rows_come_in(urls, tmp_path):
    keepers = [PostgresDatabase(urls["owner"], PostgresTerms(name="keeper")) for _ in range(3)]
    writer = open_postgres(urls["writer"])
    world = World(writer, [a_lane()], tmp_path)
    world.clock.now_us = far = NOW_US + 2_000 * 86_400 * 1_000_000  # of a month that has no partition yet

    def keep(database):
        for _ in range(20):
            try:
                return database.write(lambda connection: ensure_partitions(connection, far))
            except DBAPIError:
                time.sleep(0.1)  # as a stage would: it comes back later
        raise AssertionError("no partition could be made")

    with ThreadPoolExecutor(4) as pool:
        batch = world.take_in(some_lines(20, uuid.uuid4().hex))
        working = pool.submit(world.run_all)
        made = [name for names in pool.map(keep, keepers) for name in names]
        working.result()
    keep(keepers[0])
    assert len(made) == len(set(made)) >= 8
    assert world.counts(batch.batch_id).succeeded == 20
    assert world.count(attempt) >= 20
    assert world.verified().faults == []
    assert seen(urls["admin"], f"SELECT count(*) FROM attempt_default WHERE recorded_us >= {far}") == 0
    for database in (*keepers, writer):
        database.close()


def test_a_prefix_is_a_name():
    with pytest.raises(UsageError, match="roles can't begin with"):
        grant_statements("x; DROP TABLE job")


# ------------------------------------------------------------------------------------------------- the schema


@pytest.fixture
def empty_url(postgres_server_url):
    name = f"broker_test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_server_url, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        yield urlunsplit(urlsplit(postgres_server_url)._replace(path=f"/{name}"))
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def test_upgrades_at_once_upgrade_it_once(empty_url):
    with pytest.raises(BrokerError, match="is empty: run `broker db upgrade`"):
        open_postgres(empty_url)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: upgrade_postgres(empty_url), range(4)))
    assert sorted(found) == [SchemaState.CURRENT] * 3 + [SchemaState.EMPTY]
    open_postgres(empty_url).close()


def test_the_command_line_upgrades_checks_and_grants(empty_url, tmp_path):
    def broker(*arguments):
        environment = {"BROKER_DATABASE_URL": empty_url, "PATH": "/usr/bin:/bin"}
        return run(["db", *arguments], cwd=tmp_path, env=environment)

    place = f"{urlsplit(empty_url).hostname}:{urlsplit(empty_url).port or 5432}"
    empty = broker("check")
    assert (empty.returncode, "is empty: run `broker db upgrade`" in empty.stderr) == (1, True)
    upgraded = broker("upgrade")
    assert (upgraded.returncode, place in upgraded.stdout, "is up to date" in upgraded.stdout) == (0, True, True)
    assert broker("check").returncode == 0
    granted = broker("grants", "--prefix", PREFIX)
    assert granted.returncode == 0
    assert granted.stdout.startswith("BEGIN;")
    assert f"TO {PREFIX}_writer" in granted.stdout
    assert granted.stdout.rstrip().endswith("COMMIT;")
