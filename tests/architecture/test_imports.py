"""The import contracts of pyproject.toml hold, and each of them can be broken."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PLANTS = [
    ("broker/domain/planted.py", "import sqlalchemy", "Nouns and rules are plain Python"),
    ("broker/rules/planted.py", "import structlog", "Nouns and rules are plain Python"),
    ("broker/rules/planted.py", "import time", "Rules are told the time"),
    ("broker/domain/planted.py", "import broker.rules", "Imports run one way"),
    ("broker/bus/planted.py", "import broker.stages.recorder", "Imports run one way"),
    ("broker/stages/relay.py", "import broker.stages.recorder", "Loops are strangers"),
    ("broker/stages/watching.py", "import broker.stages.planner", "Loops are strangers"),
    ("broker/stages/recorder.py", "import broker.intake.uploads", "Imports run one way"),
    ("broker/intake/uploads.py", "import broker.intake.single_jobs", "Doors that take work in are strangers"),
    ("broker/front.py", "import broker.api.desk", "Imports run one way"),
    ("broker/ledger/sealing.py", "import broker.bus.envelope", "The ledger knows no bus"),
    ("broker/api/server.py", "import broker.bootstrap.door", "Imports run one way"),
    ("broker/surprise.py", "", "Imports run one way"),
    ("broker/stages/recorder.py", "import workers.engine", "Only the wiring starts workers"),
    ("broker/stages/recorder.py", "import sqlalchemy", "SQLAlchemy has one door"),
    ("broker/intake/batch_files.py", "import alembic", "Alembic has one door"),
    ("broker/stages/dispatcher.py", "import celery", "Celery and kombu have one door"),
    ("workers/planted.py", "import kombu", "Celery and kombu have one door"),
    ("broker/bus/planted.py", "import google.cloud.pubsub_v1", "Google's SDK has one door"),
    ("broker/bus/planted.py", "import azure.servicebus", "Azure's SDK has one door"),
    ("broker/bus/planted.py", "import oci", "Oracle's SDK has one door"),
    ("broker/bus/planted.py", "import obstore", "The object store has one door"),
    ("broker/stages/planner.py", "import httpx", "HTTP is spoken at the edges"),
    ("broker/stages/recorder.py", "import rich", "Only the command line talks to a terminal"),
    ("workers/runner.py", "import broker.ledger", "Workers hold no database and decide nothing"),
    ("workers/runner.py", "import sqlite3", "Workers see no database driver, by any way"),
    ("workers/runner.py", "import broker.rules", "Workers know the bus and the nouns alone"),
    ("workers/engine.py", "import workers.runner", "Workers run one way"),
    ("broker/sdk/http.py", "import broker.database", "A producer's client carries no broker"),
]


def check_imports(root: Path) -> tuple[int, str]:
    """The exit code and the report of import-linter on the tree at `root`."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    result = subprocess.run(
        [*command, "--no-cache", "--no-logo"], cwd=root, capture_output=True, text=True, check=False
    )
    return result.returncode, result.stdout + result.stderr


@pytest.fixture
def copy(tmp_path):
    for folder in ("broker", "workers", "migrations"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
        (tmp_path / folder / "__init__.py").touch()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def plant(root: Path, path: str, line: str) -> None:
    with (root / path).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")


def test_every_contract_is_kept():
    code, report = check_imports(ROOT)
    assert code == 0, report


@pytest.mark.parametrize(("path", "line", "contract"), PLANTS, ids=[f"{p[0]}: {p[1]}" for p in PLANTS])
def test_a_planted_violation_is_caught(copy, path, line, contract):
    plant(copy, path, line)
    code, report = check_imports(copy)
    assert code == 1, report
    assert f"{contract} BROKEN" in report


def test_drivers_that_know_each_other_are_caught(copy):
    plant(copy, "broker/bus/drivers/planted_one.py", "")
    plant(copy, "broker/bus/drivers/planted_two.py", "import broker.bus.drivers.planted_one")
    code, report = check_imports(copy)
    assert code == 1, report
    assert "Drivers of one port are strangers BROKEN" in report


def test_a_circle_is_caught(copy):
    plant(copy, "broker/bus/planted.py", "import broker.ledger.planted")
    plant(copy, "broker/ledger/planted.py", "import broker.bus.planted")
    code, report = check_imports(copy)
    assert code == 1, report
    assert "No circles BROKEN" in report
