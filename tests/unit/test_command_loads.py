"""What each command loads: no more than it works with, so that it starts at once."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker.bootstrap.data_folder import open_database
from broker.cli.app import COMMANDS, app, load
from broker.ledger.questions import GROUP_KEYS

ROOT = Path(__file__).parents[2]

DATABASE = {"alembic", "psycopg", "sqlalchemy", "sqlite3"}
DOOR = {"litestar", "uvicorn", "uvloop"}
BUSES = {"azure", "celery", "google", "kombu", "oci", "redis"}
HTTP = {"httpx"}
ENGINES = {"aiohttp", "xllamacpp"}
KEYS = {"cryptography"}
SOLVER = {"highspy", "numpy"}
OURS = {"broker.api", "broker.bus", "broker.database", "broker.ledger", "broker.stages", "workers"}
HEAVY = DATABASE | DOOR | BUSES | HTTP | ENGINES | KEYS | SOLVER | OURS | {"rich", "structlog"}

SAID = "loaded: "

# `main` for each line of words, in one process; then the names of all modules, and each package above them.
RUN_ALL = f"""
import json, sys
from broker.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["broker", *words]
    try:
        main()
    except SystemExit as end:
        print("exit", end.code)
print("{SAID}" + " ".join(sorted({{".".join(n.split(".")[:k]) for n in sys.modules for k in (1, 2)}})))
"""


def python(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    environment = clean | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"} | variables
    return subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def loaded(*commands: list[str]) -> tuple[set[str], str]:
    """The modules of a process that ran these, and all it said."""
    done = python("-c", RUN_ALL, json.dumps(commands))
    assert SAID in done.stdout, done.stdout + done.stderr
    said, _, names = done.stdout.partition(SAID)
    return set(names.split()), said + done.stderr


def test_help_and_the_version_load_no_command():
    names, said = loaded(["--help"], ["--version"])
    assert said.count("exit 0") == 2
    assert not names & HEAVY
    assert {name for name in names if name.startswith("broker.")} <= {"broker.cli", "broker.domain"}


def test_a_commands_own_help_loads_nothing_that_it_works_with():
    helps = [
        [name, *of_group, "--help"] for name in COMMANDS for of_group in ([], *([word] for word in subcommands(name)))
    ]
    names, said = loaded(*helps)
    assert said.count("exit 0") == len(helps) > 40
    assert not names & HEAVY


def subcommands(name: str) -> list[str]:
    return sorted(getattr(load(name), "commands", {}))


def test_a_question_to_a_running_broker_loads_http_and_no_broker():
    where = ["--url", "http://127.0.0.1:1"]
    names, said = loaded(
        ["jobs", "get", "job_1", *where],
        ["jobs", "cancel", "job_1", *where],
        ["jobs", "submit", "--model", "m", "hello", "--require", "region=eu", *where],
        ["lanes", "list", *where],
        ["lanes", "pause", "tpu", *where],
        ["batch", "list", *where],
        ["batch", "get", "batch_1", *where],
        ["instances", "list", *where],
    )
    assert said.count("exit 1") == 8, said
    assert names >= HTTP
    assert not names & (HEAVY - HTTP - {"rich"})  # which httpx loads, for a command of its own


def test_a_question_to_a_folders_ledger_loads_neither_buses_nor_doors_nor_postgresql(tmp_path):
    open_database(tmp_path).close()
    where = ["--data", str(tmp_path)]
    names, said = loaded(
        ["ledger", "summary", *where],
        ["jobs", "explain", "job_00000000000000000000000000000000", *where],
        ["prices", "list", *where],
        ["db", "check", *where],
    )
    assert "The ledger has nothing on that." in said
    assert "is up to date" in said
    assert {"sqlalchemy", "sqlite3"} <= names
    assert not names & (DOOR | BUSES | HTTP | SOLVER | {"alembic", "psycopg", "broker.api", "broker.stages", "workers"})


def test_the_worker_command_loads_no_database_and_no_door():
    code = "import sys, broker.cli.worker, broker.bootstrap.lane_worker; print(*sys.modules)"
    names = {name.partition(".")[0] for name in python("-c", code).stdout.split()}
    assert {"broker", "workers", "celery", "httpx"} <= names
    assert not names & (DATABASE | DOOR | ENGINES | SOLVER)


def test_the_program_starts_as_a_module_and_says_what_it_is():
    done = python("-m", "broker", "--version")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Inference Broker {version('inference-broker')} (Python {platform.python_version()})\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_says_itself(name):
    assert COMMANDS[name][1] == load(name).help.split("\n\n")[0].replace("\n", " ")


def test_a_mistyped_command_is_answered_with_the_one_that_was_meant():
    done = CliRunner().invoke(app, ["ledgr"])
    assert done.exit_code == 2
    assert "Did you mean 'ledger'?" in done.output


def test_the_keys_that_help_names_are_those_of_the_ledger():
    by = next(option for option in load("ledger").commands["summary"].params if option.name == "by")
    assert by.help == f"Keys to group by, with commas: {', '.join(GROUP_KEYS)}, tag:NAME."
