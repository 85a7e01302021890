"""A limit that names nothing, such as an unset variable's, is refused: without it jobs would run anywhere."""

from __future__ import annotations

import subprocess
import sys

import pytest

from broker.cli.options import read_constraints
from broker.domain.errors import UsageError


@pytest.mark.parametrize(
    ("lanes", "require"), [("", None), (",", None), (None, ["provider=,"]), (None, ["region!=, "])]
)
def test_of_a_job(lanes, require):
    with pytest.raises(UsageError, match="--require is "):
        read_constraints(lanes, require)


@pytest.mark.parametrize("lanes", ["", ","])
def test_of_batch_run(tmp_path, lanes):
    file = tmp_path / "jobs.jsonl"
    file.write_text("{}\n")
    command = [sys.executable, "-m", "broker", "batch", "run", str(file), "--lanes", lanes, "--data", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (
        2,
        f"error: --lanes is {lanes!r}, which names none: leave it out for all lanes\n",
    )
