"""The import contracts of pyproject.toml hold, and each of them can be broken."""

from __future__ import annotations

import json
import os
import re
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
    ("broker/cli/planted.py", "import aiohttp", "HTTP is spoken at the edges"),
    ("workers/engines/echo.py", "import aiohttp", "HTTP is spoken at the edges"),
    ("broker/stages/recorder.py", "import rich", "Only the command line talks to a terminal"),
    ("workers/runner.py", "import broker.ledger", "Workers hold no database and decide nothing"),
    ("workers/runner.py", "import sqlite3", "Workers see no database driver, by any way"),
    ("workers/runner.py", "import broker.rules", "Workers know the bus and the nouns alone"),
    ("workers/engine.py", "import workers.runner", "Workers run one way"),
    ("broker/sdk/http.py", "import broker.database", "A producer's client carries no broker"),
]


OF_SEVERAL_FILES = {
    "drivers that know each other": (
        [
            ("broker/bus/drivers/planted_one.py", ""),
            ("broker/bus/drivers/planted_two.py", "import broker.bus.drivers.planted_one"),
        ],
        "Drivers of one port are strangers",
    ),
    "a circle": (
        [
            ("broker/bus/planted.py", "import broker.ledger.planted"),
            ("broker/ledger/planted.py", "import broker.bus.planted"),
        ],
        "No circles",
    ),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What import-linter says of a copy of the tree: of nothing planted first, then with each of the plants."""
    copy = tmp_path_factory.mktemp("copy")
    for folder in ("broker", "workers", "migrations"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
        (copy / folder / "__init__.py").touch()
    # A contract is checked alone by its id, which ours don't need otherwise.
    contracts = (ROOT / "pyproject.toml").read_text()
    (copy / "pyproject.toml").write_text(
        re.sub(r'^name = (".*")$', r"id = \1\nname = \1", contracts, flags=re.MULTILINE)
    )
    planted = {"nothing": ([], None)} | {plant: ([plant[:2]], plant[2]) for plant in PLANTS} | OF_SEVERAL_FILES
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "architecture" / "planting.py"],
        cwd=copy,
        env=environment,
        input=json.dumps(list(planted.values())),
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(planted, json.loads(done.stdout), strict=True))


def test_every_contract_is_kept():
    """As `make lint` asks, of this tree itself."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run([*command, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_is_found_where_nothing_is_planted(reports):
    code, report = reports["nothing"]
    assert code == 0, report


@pytest.mark.parametrize("plant", PLANTS, ids=[f"{p[0]}: {p[1]}" for p in PLANTS])
def test_a_planted_violation_is_caught(reports, plant):
    code, report = reports[plant]
    assert code == 1, report
    assert f"{plant[2]} BROKEN" in report


@pytest.mark.parametrize("name", OF_SEVERAL_FILES)
def test_what_takes_two_files_is_caught(reports, name):
    code, report = reports[name]
    assert code == 1, report
    assert f"{OF_SEVERAL_FILES[name][1]} BROKEN" in report
