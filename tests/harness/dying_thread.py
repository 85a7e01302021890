"""The `broker` command with threads that die when a test asks for it; nothing of the product knows of that.

DEATHS_FOLDER is a folder of this process. Once it has a file named for a part, the next step of that part raises
SystemExit, which no step of the product does: so ends a thread whose guard let something through. `PARTS` says which
step that is. With QUICK the keeper and the sealer take a turn five times a second; PostgreSQL is waited for
RETRY_SECONDS where that is given.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import broker.database.drivers.postgres.database as postgres
from broker.bootstrap import roles

__all__ = ["DEATHS_FOLDER", "PARTS", "QUICK", "RETRY_SECONDS"]

DEATHS_FOLDER = "HARNESS_DEATHS_FOLDER"
QUICK = "HARNESS_QUICK"
RETRY_SECONDS = "HARNESS_RETRY_SECONDS"

PARTS = {
    "api": ("broker.intake.single_jobs", "SingleJobs", "_commit"),
    "door": ("uvicorn.server", "Server", "on_tick"),  # it answers whatever a request raises
    "intake": ("broker.intake.uploads", "UploadReader", "step"),
    "planner": ("broker.stages.planner", "Planner", "step"),
    "dispatcher": ("broker.stages.dispatcher", "Dispatcher", "step"),
    "relay": ("broker.stages.relay", "Relay", "step"),
    "receiving": ("broker.intake.bus_jobs", "BusJobs", "step"),
    "recorder": ("broker.bootstrap.recording", "_Recording", "step"),
    "rescuer": ("broker.stages.rescuer", "Rescuer", "step"),
    "closer": ("broker.stages.closer", "Closer", "step"),
    "assembler": ("broker.stages.assembler", "Assembler", "step"),
    "notifier": ("broker.stages.notifier", "Notifier", "step"),
    "sealer": ("broker.stages.sealer", "Sealer", "step"),
    "keeper": ("broker.stages.keeper", "Keeper", "step"),
    "database-writer": ("broker.database.drivers.sqlite.database", "SqliteDatabase", "_next_group"),
}


def _mortal(order: Path, step: Callable[..., Any]) -> Callable[..., Any]:

    @wraps(step)
    def mortal(*arguments: Any, **named: Any) -> Any:
        if order.exists():
            raise SystemExit(0)  # a code that says all is well must not become the process's
        return step(*arguments, **named)

    return mortal


def main() -> None:
    """As the console script does, with `sys.argv` as given."""
    if QUICK in os.environ:
        roles.KEEPER_SECONDS = roles.SEAL_SECONDS = 0.2
    if RETRY_SECONDS in os.environ:
        terms = partial(postgres.PostgresTerms, retry_seconds=float(os.environ[RETRY_SECONDS]))
        postgres.PostgresTerms = terms  # type: ignore[misc, assignment]  # what this program is for
    folder = os.environ.get(DEATHS_FOLDER)
    for part, (module, owner, method) in PARTS.items() if folder else ():
        kind = getattr(import_module(module), owner)
        setattr(kind, method, _mortal(Path(folder or "") / part, getattr(kind, method)))
    from broker.cli import main as run

    run()
