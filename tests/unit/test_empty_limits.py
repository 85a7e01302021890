"""A limit that names nothing, such as an unset variable's, is refused: without it jobs would run anywhere."""

from __future__ import annotations

import os

import pytest

from broker.cli.options import read_constraints
from broker.domain.errors import UsageError
from tests.flow.forkserver import run


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
    words = ["batch", "run", str(file), "--lanes", lanes, "--data", str(tmp_path)]
    done = run(words, cwd=tmp_path, env=os.environ)
    assert (done.returncode, done.stderr) == (
        2,
        f"error: --lanes is {lanes!r}, which names none: leave it out for all lanes\n",
    )
