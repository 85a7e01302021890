"""`broker db`: the schema, and who may do what to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from broker.cli.options import DatabaseOption, DataOption, read_settings
from broker.cli.printing import say
from broker.domain.errors import BrokerError

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The database's schema.")

PrefixOption = Annotated[str, typer.Option("--prefix", help="What the roles' names begin with.")]


@app.command("upgrade")
def upgrade(
    data: DataOption = None,
    database_url: DatabaseOption = None,
    contract: Annotated[
        bool, typer.Option("--contract", help="Remove what older builds needed, too; refused while one is seen.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be done, and change nothing.")] = False,
) -> None:
    """Bring the database up to this program's schema: PostgreSQL's where its URL is given, else the data folder's.

    PostgreSQL may be in full use. If it is stopped anywhere, run it again.
    """
    from broker.bootstrap.data_folder import DATABASE_FILE, open_database
    from broker.bootstrap.schema_door import opened
    from broker.database import migrating
    from broker.database.drivers.sqlite.database import lock_folder

    settings = read_settings(data)
    url = database_url or settings.database_url
    if plan:
        _show_plan(settings.data, url, contract=contract or not url)
    elif url:
        with opened(settings.data, url) as engine:
            migrating.upgrade(engine, contract=contract, report=say)
            say(migrating.standing(engine))
    else:
        lock_folder(settings.data)
        open_database(settings.data).close()
        say(f"{settings.data / DATABASE_FILE} is up to date.")


def _show_plan(data: Path, url: str | None, *, contract: bool) -> None:
    from broker.bootstrap.schema_door import opened
    from broker.database import migrating

    with opened(data, url) as engine:
        steps = migrating.plan(engine, contract=contract)
    for step in steps:
        say(f"{step.revision.number}  {step.revision.phase}  {step.revision.title}")
        for statement in step.statements:
            say(f"    {statement}")
    say(f"Revisions to run: {len(steps)}. Nothing was changed.")


@app.command("check")
def check(data: DataOption = None, database_url: DatabaseOption = None) -> None:
    """Say whether this program and the database fit; exit code 1 if not."""
    from broker.bootstrap.data_folder import DATABASE_FILE
    from broker.bootstrap.schema_door import opened
    from broker.database import migrating

    settings = read_settings(data)
    url = database_url or settings.database_url
    path = settings.data / DATABASE_FILE
    if not url and not path.exists():
        raise BrokerError(f"{path} does not exist: run a batch, or `broker db upgrade`")
    with opened(settings.data, url) as engine:
        say(migrating.standing(engine))


@app.command("grants")
def grants(prefix: PrefixOption = "broker") -> None:
    """Print the SQL that makes PostgreSQL roles with least rights: owner, writer, reader and auditor.

    For a superuser to read and run, after an upgrade: `broker db grants | psql "$ADMIN_URL"`.
    """
    from broker.database.drivers.postgres.grants import grant_statements

    for statement in ("BEGIN", *grant_statements(prefix), "COMMIT"):
        say(f"{statement};")
