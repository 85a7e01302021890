"""Nobody upgrades PostgreSQL by the way: roles wait for an older schema, and everything else says what to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from broker.database.history import INSTALLED
from tests.flow.forkserver import Forked
from tests.flow.program import ROOT, kill_group, lane
from tests.services.process import free_port
from tests.upgraded import upgrade_postgres

SECONDS_MAX = 60.0
HEAD = INSTALLED.build.needed
LANES = lane("tpu", "google-tpu", bus_url="redis://127.0.0.1:1/0")


@pytest.fixture
def empty_url(postgres_server_url):
    name = f"broker_test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_server_url, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        yield urlunsplit(urlsplit(postgres_server_url)._replace(path=f"/{name}"))
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def older_url(empty_url):
    """The schema of the build before this one."""
    engine = create_engine(empty_url.replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool)
    with engine.begin() as connection:
        INSTALLED.run(connection, "0007")
    return empty_url


@pytest.fixture
def start(tmp_path):
    """Starts `broker` with these words beside a database; its output goes to a file."""
    (tmp_path / "lanes.toml").write_text(LANES)
    started = []

    def start(url, *words):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
        ours = {
            "PYTHONPATH": str(ROOT),
            "BROKER_DATABASE_URL": url,
            "BROKER_DATA": str(tmp_path / "data"),
            "BROKER_CATALOG": str(tmp_path / "lanes.toml"),
        }
        process = Forked(words, cwd=tmp_path, env=clean | ours, stderr=subprocess.STDOUT)
        started.append(process)
        return process

    yield start
    for process in started:
        kill_group(process)


def ended(process):
    output, _ = process.communicate(timeout=SECONDS_MAX)
    return process.returncode, output


def revision(url):
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT version_num FROM broker_schema").fetchone()[0]


COMMANDS = {
    "lane key": ("keys", "lane", "create", "tpu"),
    "producer key": ("keys", "producer", "create", "one"),
    "keys": ("keys", "list"),
    "revoke": ("keys", "revoke", "nothing"),
    "seal": ("ledger", "seal"),
    "summary": ("ledger", "summary"),
    "prices": ("prices", "list"),
    "check": ("db", "check"),
}


def test_no_command_upgrades_by_the_way(older_url, start):
    running = {name: start(older_url, *words) for name, words in COMMANDS.items()}
    found = {name: ended(process) for name, process in running.items()}
    assert {name: code for name, (code, _) in found.items()} == dict.fromkeys(COMMANDS, 1)
    for name, (_, output) in found.items():
        assert f"(schema 0007, this program needs {HEAD}): run `broker db upgrade`." in " ".join(output.split()), name
        assert "Traceback" not in output
    assert revision(older_url) == "0007"


def test_nothing_makes_tables_in_an_empty_database(empty_url, start):
    for words in (("serve",), COMMANDS["lane key"], COMMANDS["summary"]):
        code, output = ended(start(empty_url, *words))
        assert (code, "is empty: run `broker db upgrade`." in " ".join(output.split())) == (1, True), output
    with psycopg.connect(empty_url) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()[0] == 0


def test_a_role_waits_for_the_upgrade_and_resumes_by_itself(older_url, start):
    """Two of them: one is stopped while it waits, the other works once the schema is there."""
    stopped = start(older_url, "serve", "rescuer", "closer")
    waiting = start(older_url, "serve", "closer", "rescuer", "--port", str(free_port()))
    for process in (stopped, waiting):
        line = json.loads(process.stdout.readline())
        assert (line["event"], line["schema"], line["needed"]) == ("schema_is_older", "0007", HEAD)
        assert "run `broker db upgrade`" in line["action"]
    stopped.send_signal(signal.SIGTERM)
    assert ended(stopped) == (0, "Stopped.\n")
    assert revision(older_url) == "0007"
    time.sleep(2.5)  # it looks again, and says nothing new
    upgrade_postgres(older_url)
    lines = []
    while not (lines and "Ready" in lines[-1]):
        lines.append(waiting.stdout.readline())
        assert lines[-1], lines
    assert [line for line in lines if "schema_is_older" in line] == []
    with psycopg.connect(older_url) as connection:
        deadline = time.monotonic() + SECONDS_MAX
        while not (seen := connection.execute("SELECT revision FROM build_seen").fetchall()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert seen == [(HEAD,)]
    waiting.send_signal(signal.SIGTERM)
    assert ended(waiting)[0] == 0


def test_a_schema_that_no_longer_serves_it_is_refused_and_one_that_does_is_not(older_url, start):
    upgrade_postgres(older_url)
    with psycopg.connect(older_url, autocommit=True) as connection:
        connection.execute("UPDATE broker_schema SET version_num = '0077', oldest_served = '0007'")
        code, output = ended(start(older_url, "db", "check"))
        assert (code, "has the later schema 0077, which still serves this program." in output) == (0, True), output
        assert ended(start(older_url, "db", "upgrade"))[0] == 0
        assert revision(older_url) == "0077"
        connection.execute("UPDATE broker_schema SET oldest_served = '0077'")
    for words in (("serve", "keeper"), ("keys", "list"), ("db", "upgrade"), ("db", "upgrade", "--contract")):
        code, output = ended(start(older_url, *words))
        assert (code, "newer version of Inference Broker (schema 0077" in " ".join(output.split())) == (1, True), output


def test_a_plan_says_what_an_upgrade_would_do(older_url, start):
    code, output = ended(start(older_url, "db", "upgrade", "--plan"))
    assert code == 0
    assert "0010  expand  Which builds a schema serves" in output
    assert "CREATE INDEX CONCURRENTLY ix_ready_batch ON ready (batch_id)" in output
    assert "Nothing was changed." in output
    assert revision(older_url) == "0007"
    assert ended(start(older_url, "db", "upgrade"))[0] == 0
    assert "Revisions to run: 0." in ended(start(older_url, "db", "upgrade", "--plan"))[1]


def test_killed_in_the_middle_of_an_index_another_goes_on(older_url, start):
    """A report's snapshot holds the index up; what the killed one had begun, PostgreSQL ends for itself."""
    with psycopg.connect(older_url) as report, psycopg.connect(older_url, autocommit=True) as looking:
        report.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        report.execute("SELECT 1")  # reads no table, so it is in the way of no ALTER
        killed = start(older_url, "db", "upgrade")
        building = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONC%' AND state = 'active'"
        deadline = time.monotonic() + SECONDS_MAX
        while looking.execute(building + " AND datname = current_database()").fetchone() != (1,):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        killed.kill()
        following = start(older_url, "db", "upgrade")
        assert (
            following.stdout.readline() == "Another `broker db upgrade` is at work on this database; waiting for it.\n"
        )
        assert revision(older_url) != HEAD
        report.rollback()
        code, output = ended(following)
        assert (code, "is up to date." in output) == (0, True), output
        invalid = "SELECT count(*) FROM pg_index WHERE NOT indisvalid"
        assert looking.execute(invalid).fetchone() == (0,)
    assert revision(older_url) == HEAD
