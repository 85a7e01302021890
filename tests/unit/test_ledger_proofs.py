"""A job's proof convinces a program of twenty lines that has never heard of us, and no other proof does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from broker.domain.errors import BrokerError
from broker.domain.ids import new_id
from broker.keys import trust_text
from broker.ledger.proving import prove_job
from broker.ledger.tables import attempt, job_outcome
from broker.ledger.writing import Flush, append, open_stream
from tests.unit.builders import NOW_US, a_signer, an_attempt_row, an_outcome_row
from tests.unit.sealed_ledger import SIGNER, Ledger, a_sealed_ledger

DOCUMENT = Path(__file__).parents[2] / "docs/ledger.md"


@pytest.fixture
def proven(database, tmp_path):
    return a_sealed_ledger(database, tmp_path)


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """As it stands in the documents; it runs where nothing of ours can be imported."""
    [text] = re.findall(r"```python\n(\"\"\"Check one job's proof: .*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert set(re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE)) <= {*sys.stdlib_module_names, "cryptography"}
    path = tmp_path_factory.mktemp("stranger") / "verify_proof.py"
    path.write_text(text)
    return path


def _check(program, proof, signer=SIGNER):
    folder = program.parent
    (folder / "proof.json").write_text(json.dumps(proof))
    (folder / "broker.pub").write_text(trust_text([(signer.key_id, signer.public_bytes)]))
    return subprocess.run(
        [sys.executable, "-I", program, "proof.json", "broker.pub"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def _proof(ledger: Ledger, job_id: bytes):
    return json.loads(msgspec.json.encode(ledger.database.read(lambda connection: prove_job(connection, job_id))))


def _a_job(ledger):
    """A job with three attempts in two streams, among other rows."""
    job_id = new_id()

    def work(connection):
        for slot, attempts in (("rescuer-0", 1), ("recorder-0", 2)):
            rows = [an_attempt_row(job_id=job_id, started_us=None, outcome="lost") for _ in range(attempts)]
            others = [an_attempt_row(), *rows, an_attempt_row()]
            append(connection, open_stream(connection, slot, NOW_US), Flush(attempts=others), ledger.clock())
        row = an_outcome_row(job_id=job_id, error_code="é" * 20)
        stream = open_stream(connection, "recorder-0", NOW_US)
        append(connection, stream, Flush(outcomes=[an_outcome_row(), row]), ledger.clock())

    ledger.database.write(work)
    return job_id


def test_every_job_of_the_ledger_can_be_proven(proven, program):
    ids = [row.job_id for table in (attempt, job_outcome) for row in proven.rows(table)]
    proven.seal()
    for job_id in ids[:: len(ids) // 3]:
        done = _check(program, _proof(proven, job_id))
        assert done.returncode == 0, done.stderr


def test_a_proof_holds_all_rows_of_a_job_wherever_they_were_written(proven, program):
    job_id = _a_job(proven)
    proven.seal()
    proof = _proof(proven, job_id)
    assert [row["table"] for row in proof["rows"]] == ["attempt", "attempt", "attempt", "job_outcome"]
    done = _check(program, proof)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"job_{job_id.hex()}: 4 rows, in the ledger at time ")


def _changed(proof):
    """The proof, with one thing in it changed each time."""
    for name in ("row", "batch"):
        yield name, lambda row, name=name: row.update({name: _flipped(row[name])})
    yield "row_index", lambda row: row.update(row_index=row["row_index"] ^ 1)
    yield "seal_index", lambda row: row.update(seal_index=row["seal_index"] ^ 1)
    yield "short path", lambda row: row["row_path"].pop()
    yield "long path", lambda row: row["seal_path"].append("00" * 32)
    yield "other path", lambda row: row["seal_path"].__setitem__(0, _flipped(row["seal_path"][0]))
    yield "value", lambda row: row["values"].update(cost_nano_usd=0)


def _flipped(digits):
    return digits[:-1] + ("0" if digits[-1] != "0" else "1")


def test_whatever_is_changed_in_a_proof_it_proves_nothing(proven, program):
    job_id = _a_job(proven)
    proven.seal()
    good = _proof(proven, job_id)
    for name, change in _changed(good):
        proof = json.loads(json.dumps(good))
        change(proof["rows"][1])
        assert _check(program, proof).returncode == 1, name
    for before, after in (("\n1", "\n2"), ("time 1", "time 2")):
        proof = good | {"checkpoint": good["checkpoint"].replace(before, after)}
        assert proof != good
        assert _check(program, proof).returncode == 1
    stranger, _ = a_signer()
    assert _check(program, good, stranger).returncode == 1


def test_what_is_not_there_or_not_sealed_is_not_proven(proven):
    with pytest.raises(BrokerError, match="the ledger has no row of job_"):
        _proof(proven, new_id())
    job_id = _a_job(proven)
    with pytest.raises(BrokerError, match="is in the ledger, but not sealed yet"):
        _proof(proven, job_id)
