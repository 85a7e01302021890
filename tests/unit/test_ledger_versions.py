"""Rows of every version are read by it: on SQLite, also in a ledger that an earlier build began."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given, settings
from typer.testing import CliRunner

from broker.bootstrap.data_folder import open_database
from broker.cli.ledger import app
from broker.domain.errors import BrokerError
from broker.domain.ids import parse_id
from broker.ledger.proving import prove_job
from broker.ledger.tables import attempt, cost_entry, job_outcome, ledger_batch
from broker.ledger.verifying import verify
from broker.ledger.versions import CURRENT, UnknownVersion, columns_of
from broker.ledger.writing import append, open_stream
from tests.grown_ledgers import Grown, check_proof, script
from tests.ledger_rows import NOT_PROVEN, flushes, missed_edits
from tests.old_ledgers import FIRST, old_proofs, restore_sqlite
from tests.unit.builders import GENERATE_ONLY, NOW_US


@pytest.fixture
def grown(tmp_path):
    restore_sqlite(tmp_path / "old")
    database = open_database(tmp_path / "old")
    yield Grown(database, tmp_path / "old", "sqlite", ("t", "u"))
    database.close()


def _verify_by_script(tmp_path, path):
    program = script("Recompute the whole proof", tmp_path)
    return subprocess.run([sys.executable, program, path], capture_output=True, text=True, check=False)


def test_versions_only_add_columns():
    for table in (attempt, job_outcome, cost_entry):
        first, second = columns_of(table, 1), columns_of(table, 2)
        assert second[: len(first)] == first
        assert set(second) == {column.name for column in table.c} - {"leaf"}
    with pytest.raises(UnknownVersion, match=r"^it is of ledger version 3, and this program knows 1 and 2$"):
        columns_of(attempt, CURRENT + 1)


def test_the_script_of_the_document_knows_the_same_versions():
    text_of = (FIRST.parents[3] / "docs/ledger.md").read_text()
    [table] = re.findall(r"^ADDED = (\{.*\})$", text_of, re.MULTILINE)
    added = {
        str(one.name): (0, len(columns_of(one, 2)) - len(columns_of(one, 1)))
        for one in (attempt, job_outcome, cost_entry)
    }
    assert eval(table) == added  # a table of numbers, in our own document


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


# ------------------------------------------------------------------------------------------- ledgers of earlier builds


def _all_of(path):
    with sqlite3.connect(path) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        schema = database.execute("SELECT type, name FROM sqlite_master ORDER BY 1, 2").fetchall()
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return schema, {name: database.execute(f"SELECT * FROM {name}").fetchall() for name in names}


def test_the_migration_leaves_every_old_row_index_and_trigger(tmp_path):
    schema, rows = _all_of(restore_sqlite(tmp_path / "before", upgraded=False))
    path = restore_sqlite(tmp_path / "after")
    schema_after, rows_after = _all_of(path)
    assert set(schema) <= set(schema_after)
    for name in ("attempt", "job_outcome", "cost_entry", "price", "ledger_batch", "ledger_checkpoint", "job"):
        width = len(rows[name][0]) if rows[name] else 0
        assert [row[:width] for row in rows_after[name]] == rows[name], name
        assert all(value is None for row in rows_after[name] for value in row[width:]), name
    with sqlite3.connect(path) as database, pytest.raises(sqlite3.IntegrityError, match="attempt is append-only"):
        database.execute("UPDATE attempt SET input_tokens = NULL")


def test_an_old_ledger_verifies_and_proves_by_command(tmp_path):
    restore_sqlite(tmp_path)
    where = ("--data", str(tmp_path), "--trusted", str(FIRST / "sqlite/broker.pub"))
    done = CliRunner().invoke(app, ["verify", *where], env={"BROKER_DATABASE_URL": ""})
    assert done.exit_code == 0
    assert done.stdout.startswith("36 rows in 12 batches of 3 streams")
    assert "12 of these batches are sealed, by 2 checkpoints" in done.stdout
    for proof in old_proofs("sqlite"):
        words = ["prove", "--job", proof["job"], "--data", str(tmp_path)]
        done = CliRunner().invoke(app, words, env={"BROKER_DATABASE_URL": ""})
        assert json.loads(done.stdout) == proof  # to the byte what the old build printed


def test_an_old_ledger_and_its_proofs_verify_by_the_documents_programs(tmp_path):
    done = _verify_by_script(tmp_path, restore_sqlite(tmp_path / "old"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("recorder-0: 30 rows in 8 batches, head ")
    program = script("Check one job's proof", tmp_path)
    proofs = old_proofs("sqlite")
    assert len(proofs) >= 10
    for proof in proofs[::3]:
        done = check_proof(program, proof, FIRST / "sqlite/broker.pub")
        assert done.returncode == 0, done.stderr


def test_both_versions_in_one_stream_verify_and_prove(grown, tmp_path):
    found = grown.database.read(lambda connection: verify(connection, grown.notes(), grown.keys))
    assert found.faults == []
    versions = {row.schema_version for row in grown.ledger.rows(ledger_batch) if row.stream_id == grown.ledger.stream()}
    assert versions == {1, 2}
    assert {row.schema_version for row in grown.ledger.rows(cost_entry)} == {1, 2}
    done = _verify_by_script(tmp_path, tmp_path / "old/broker.db")
    assert done.returncode == 0, done.stderr
    program = script("Check one job's proof", tmp_path)
    jobs = {row.schema_version: row.job_id for row in grown.ledger.rows(attempt)}
    for job_id in (*jobs.values(), parse_id("job", old_proofs("sqlite")[0]["job"])):
        proof = grown.database.read(lambda connection, job_id=job_id: prove_job(connection, job_id))
        done = check_proof(program, msgspec.to_builtins(proof), grown.public)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("version", [1, 2])
def test_every_edit_of_every_column_of_the_ledger_is_found(grown, version):
    tried, missed = missed_edits(grown.database, version, grown.notes(), grown.keys)
    assert tried > 150
    assert missed == NOT_PROVEN[version]


@pytest.mark.parametrize("table", [attempt, job_outcome, cost_entry], ids=str)
def test_the_documents_program_finds_an_edit_in_any_column_of_either_version(grown, tmp_path, table):
    path = tmp_path / "old/broker.db"
    program = script("Recompute the whole proof", tmp_path)
    grown.database.close()
    last = columns_of(table, CURRENT)[-1]
    for version, column in [(1, last), (2, last), (1, "leaf"), (2, "leaf"), (1, "schema_version")]:
        copy = tmp_path / f"edited-{version}-{column}.db"
        copy.write_bytes(path.read_bytes())
        with sqlite3.connect(copy) as database:
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                database.execute(f"DROP TRIGGER {name}")
            here = f"rowid = (SELECT min(rowid) FROM {table.name} WHERE schema_version = {version})"
            if table is job_outcome:
                here = f"job_id = (SELECT min(job_id) FROM {table.name} WHERE schema_version = {version})"
            value = "3" if column == "schema_version" else "x'00'"
            assert database.execute(f"UPDATE {table.name} SET {column} = {value} WHERE {here}").rowcount == 1
        done = subprocess.run([sys.executable, program, copy], capture_output=True, text=True, check=False)
        assert done.returncode == 1, (version, column)
        assert re.search(rf"AssertionError: {table.name} row \d+ is (not what was written|of version 3)", done.stderr)


@pytest.mark.parametrize("value", ["x", b"x", 1.5, 2**62, -1], ids=str)
@pytest.mark.parametrize(
    ("table", "column"),
    [
        *(("attempt", name) for name in ("seq", "ledger_batch", "schema_version", "cost_nano_usd", "price_version")),
        *(("ledger_batch", name) for name in ("batch_number", "first_seq", "rows_count", "merkle_root", "batch_hash")),
        *(("ledger_seal_leaf", name) for name in ("batch_number", "batch_hash")),
        ("ledger_checkpoint", "note"),
    ],
)
def test_what_sqlite_keeps_in_any_column_is_a_fault_and_ends_no_verification(tmp_path, table, column, value):
    path = restore_sqlite(tmp_path)
    with sqlite3.connect(path) as other:
        for (name,) in other.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            other.execute(f'DROP TRIGGER "{name}"')
        key = {"attempt": "attempt_id", "ledger_batch": "batch_hash", "ledger_checkpoint": "tree_size"}
        chosen = key.get(table, "tree_index")
        where = f"{chosen} = (SELECT max({chosen}) FROM {table})"
        assert other.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (value,)).rowcount == 1
    database = open_database(tmp_path)
    assert database.read(verify).faults != []
    database.close()


@pytest.mark.parametrize("value", [99, "x"], ids=str)
@pytest.mark.parametrize("column", ["seq", "cost_nano_usd", "leaf", "recorded_us"])
def test_an_edited_row_is_not_proven_and_the_command_says_so(tmp_path, column, value):
    path = restore_sqlite(tmp_path)
    job_id = parse_id("job", old_proofs("sqlite")[0]["job"])
    with sqlite3.connect(path) as other:
        other.execute("DROP TRIGGER attempt_no_update")
        other.execute(f"UPDATE attempt SET {column} = ? WHERE job_id = ?", (value, job_id))
    words = ["prove", "--job", f"job_{job_id.hex()}", "--data", str(tmp_path)]
    done = CliRunner().invoke(app, words, env={"BROKER_DATABASE_URL": ""})
    assert isinstance(done.exception, BrokerError)
    assert "is not what was written" in str(done.exception)
