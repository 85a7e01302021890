"""Rows of every version are read by it: on PostgreSQL, also in a ledger that an earlier build began."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

import msgspec
import psycopg
import pytest
from hypothesis import given, settings
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool
from typer.testing import CliRunner

from broker.cli.ledger import app
from broker.database.drivers.postgres.database import PostgresDatabase
from broker.database.migrating import upgrade
from broker.ledger.proving import prove_job
from broker.ledger.questions import Filters, summary
from broker.ledger.tables import attempt, cost_entry, ledger_batch
from broker.ledger.verifying import verify
from broker.ledger.writing import Flush, append, open_stream
from tests.grown_ledgers import Grown, check_proof, script
from tests.ledger_rows import NOT_PROVEN, flushes, missed_edits
from tests.old_ledgers import FIRST, old_proofs, restore_checkpoints, restore_postgres
from tests.postgres.conftest import TERMS
from tests.unit.builders import GENERATE_ONLY, NOW_US, an_attempt_row


@contextmanager
def _a_database(server_url, template="template1"):
    name = f"broker_test_{uuid.uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        admin.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')  # the disk is not what is tested
        try:
            yield urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))
        finally:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def bare_url(postgres_server_url):
    """An empty database of the test's own."""
    with _a_database(postgres_server_url) as url:
        yield url


@pytest.fixture(scope="module")
def template_url(postgres_server_url, tmp_path_factory):
    """The earlier build's ledger, upgraded once: tests begin with a copy."""
    with _a_database(postgres_server_url) as url:
        restore_postgres(url, tmp_path_factory.mktemp("template"))
        yield url


@pytest.fixture
def old_url(postgres_server_url, template_url, tmp_path):
    """A copy of the test's own; its checkpoints are in `tmp_path`."""
    restore_checkpoints("postgresql", tmp_path)
    with _a_database(postgres_server_url, urlsplit(template_url).path[1:]) as url:
        yield url


@pytest.fixture
def grown(old_url, tmp_path):
    database = PostgresDatabase(old_url, TERMS)
    yield Grown(database, tmp_path, "postgresql", ("t", "ü-two"))
    database.close()


def _verify_by_script(tmp_path, url):
    program = script("Recompute the whole proof", tmp_path)
    return subprocess.run([sys.executable, program, url], capture_output=True, text=True, check=False)


@settings(max_examples=25, phases=GENERATE_ONLY)
@given(flushes())
def test_any_row_is_recomputed_from_a_select_as_it_was_written(make_world, flush):
    database = make_world().database

    def work(connection):
        append(connection, open_stream(connection, "recorder-0", NOW_US), flush, NOW_US)

    database.write(work)
    found = database.read(verify)
    assert found.faults == []
    assert found.rows == len(flush.attempts) + len(flush.outcomes) + len(flush.cost_entries)


def test_the_migration_rewrites_no_table_and_leaves_every_row_and_trigger(bare_url, tmp_path):
    restore_postgres(bare_url, tmp_path / "before", upgraded=False)
    rows = "SELECT to_jsonb(one) FROM attempt AS one ORDER BY stream_id, seq"
    ledger = "relkind = 'r' AND relname ~ '^(attempt|cost_entry|job_outcome|price)'"
    files = f"SELECT relname, relfilenode FROM pg_class WHERE {ledger} ORDER BY 1"
    triggers = "SELECT tgrelid::regclass::text, tgname FROM pg_trigger ORDER BY 1, 2"
    with psycopg.connect(bare_url, autocommit=True) as connection:
        before = {question: connection.execute(question).fetchall() for question in (rows, files, triggers)}
        restore = create_engine(bare_url.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool)
        upgrade(restore)
        for question in (files, triggers):
            assert connection.execute(question).fetchall() == before[question]
        for (old,), (new,) in zip(before[rows], connection.execute(rows).fetchall(), strict=True):
            assert new.items() >= old.items()
            assert all(new[name] is None for name in new.keys() - old.keys())
        assert len(before[rows]) == 54


def test_an_old_ledger_verifies_and_proves_by_command(old_url, tmp_path):
    where = ("--data", str(tmp_path), "--database-url", old_url)
    done = CliRunner().invoke(app, ["verify", *where, "--trusted", str(FIRST / "postgresql/broker.pub")])
    assert done.exit_code == 0, done.stdout
    assert done.stdout.startswith("100 rows in 32 batches of 3 streams")
    assert "32 of these batches are sealed, by 2 checkpoints" in done.stdout
    proofs = old_proofs("postgresql")
    assert {row["values"]["tenant_id"] for proof in proofs for row in proof["rows"]} == {"t", "ü-two"}
    for proof in proofs[::4]:
        done = CliRunner().invoke(app, ["prove", "--job", proof["job"], *where])
        assert json.loads(done.stdout) == proof  # to the byte what the old build printed
    program = script("Check one job's proof", tmp_path)
    for proof in proofs[::4]:
        done = check_proof(program, proof, FIRST / "postgresql/broker.pub")
        assert done.returncode == 0, done.stderr
    done = _verify_by_script(tmp_path, old_url)
    assert done.returncode == 0, done.stderr
    assert sum(int(line.split()[1]) for line in done.stdout.splitlines()) == 100


def test_both_versions_in_one_stream_verify_and_prove(grown, old_url, tmp_path):
    found = grown.database.read(lambda connection: verify(connection, grown.notes(), grown.keys))
    assert found.faults == []
    versions = {row.schema_version for row in grown.ledger.rows(ledger_batch) if row.stream_id == grown.ledger.stream()}
    assert versions == {1, 2}
    assert {row.schema_version for row in grown.ledger.rows(cost_entry)} == {1, 2}
    done = _verify_by_script(tmp_path, old_url)
    assert done.returncode == 0, done.stderr
    program = script("Check one job's proof", tmp_path)
    for job_id in {row.schema_version: row.job_id for row in grown.ledger.rows(attempt)}.values():
        proof = grown.database.read(lambda connection, job_id=job_id: prove_job(connection, job_id))
        done = check_proof(program, msgspec.to_builtins(proof), grown.public)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("version", [1, 2])
def test_every_edit_of_every_column_of_the_ledger_is_found(grown, version):
    tried, missed = missed_edits(grown.database, version, grown.notes(), grown.keys)
    assert tried > 150
    assert missed == NOT_PROVEN[version]


def test_the_documents_program_finds_an_edit_of_an_old_rows_new_column(grown, old_url, tmp_path):
    with psycopg.connect(old_url) as connection:
        connection.execute("SET session_replication_role = replica")
        for version in (1, 2):
            first = f"SELECT stream_id, min(seq) FROM attempt WHERE schema_version = {version} GROUP BY 1 LIMIT 1"
            here = f"(stream_id, seq) = ({first})"
            [(before,)] = connection.execute(f"SELECT charged_nano_usd FROM attempt WHERE {here}").fetchall()
            connection.execute(f"UPDATE attempt SET charged_nano_usd = 77 WHERE {here}")
            connection.commit()
            done = _verify_by_script(tmp_path, old_url)
            assert "AssertionError: attempt row" in done.stderr
            assert "is not what was written" in done.stderr
            connection.execute(f"UPDATE attempt SET charged_nano_usd = %s WHERE {here}", [before])
            connection.commit()
            assert _verify_by_script(tmp_path, old_url).returncode == 0


def test_spend_is_told_apart_by_tag(database):
    teams = ('{"team":"blé","tier":"a"}', '{"team":"b"}', '{"team":"blé"}', None)
    rows = [an_attempt_row(tags=tags, cost_nano_usd=7) for tags in teams]
    database.write(
        lambda connection: append(
            connection, open_stream(connection, "recorder-0", NOW_US), Flush(attempts=rows), NOW_US
        )
    )

    def spent(by, **filters):
        found = database.read(lambda connection: summary(connection, by, Filters(**filters)))
        return {tuple(row[key] for key in by): row["cost_nano_usd"] for row in found}

    assert spent(["tag:team"]) == {("blé",): 14, ("b",): 7, (None,): 7}
    assert spent([], tags=(("team", "blé"), ("tier", "a"))) == {(): 7}
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM attempt")).scalar_one() == 4
