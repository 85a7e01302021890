"""`broker ledger seal`, `verify` and `prove`, of a folder that nobody works on."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from broker.bootstrap.data_folder import open_database
from broker.cli.ledger import app
from broker.domain.errors import BrokerError, UsageError
from broker.keys import read_signer, trust_text
from broker.ledger.tables import job_outcome
from tests.unit.builders import a_signer
from tests.unit.sealed_ledger import Ledger


def _cli(*words):
    return CliRunner().invoke(app, [*words], env={"BROKER_DATABASE_URL": ""})


def test_a_folder_is_sealed_and_verified_by_command(data, tmp_path):
    database = open_database(data)
    written = Ledger(database, data)
    written.write(3)
    database.close()
    where = ("--data", str(data))
    assert "seal" not in _cli("verify", *where).stdout
    assert "3 batches are sealed." in _cli("seal", *where).stdout
    copy, trusted = tmp_path / "copy.jsonl", tmp_path / "broker.pub"
    copy.write_bytes((data / "checkpoints.jsonl").read_bytes())
    signer, _ = read_signer(data / "keys" / "broker.key")
    trusted.write_text(trust_text([(signer.key_id, signer.public_bytes)]))
    options = ("--checkpoints", str(copy), "--trusted", str(trusted))
    said = _cli("verify", *where, *options).stdout
    assert "3 of these batches are sealed, by 1 checkpoints" in said
    assert "Every row is as it was written." in said
    job = written_job(data)
    proof = _cli("prove", "--job", f"job_{job.hex()}", *where)
    assert f'"job": "job_{job.hex()}"' in proof.stdout
    with pytest.raises(UsageError, match="there is no file"):
        raise _cli("verify", *where, "--checkpoints", str(tmp_path / "none")).exception
    trusted.write_text(trust_text([("other", a_signer()[0].public_bytes)]))
    failed = _cli("verify", *where, *options)
    assert "its signature is of no key of the broker" in failed.stdout
    assert isinstance(failed.exception, BrokerError)


def written_job(data):
    database = open_database(data)
    try:
        return database.read(lambda connection: connection.execute(select(job_outcome.c.job_id).limit(1)).scalar_one())
    finally:
        database.close()
