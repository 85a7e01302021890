"""`broker db`: the schema, and who may do what to it."""

from __future__ import annotations

from typing import Annotated

import typer

from broker.cli.options import DatabaseOption, DataOption, read_settings
from broker.cli.printing import say
from broker.domain.errors import BrokerError

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The database's schema.")

PrefixOption = Annotated[str, typer.Option("--prefix", help="What the roles' names begin with.")]


@app.command("upgrade")
def upgrade(data: DataOption = None, database_url: DatabaseOption = None) -> None:
    """Bring the database up to this program's schema: PostgreSQL's where its URL is given, else the data folder's."""
    from broker.bootstrap.data_folder import DATABASE_FILE, open_database
    from broker.database.drivers.sqlite.database import lock_folder

    settings = read_settings(data)
    if url := database_url or settings.database_url:
        _look_at_postgres(url, upgrade_schema=True)
        return
    folder = settings.data
    lock_folder(folder)
    open_database(folder).close()
    say(f"{folder / DATABASE_FILE} is up to date.")


@app.command("check")
def check(data: DataOption = None, database_url: DatabaseOption = None) -> None:
    """Say whether this program and the database fit; exit code 1 if not."""
    from broker.bootstrap.data_folder import DATABASE_FILE
    from broker.database.drivers.sqlite.database import open_read_only
    from broker.database.migrating import require_current

    settings = read_settings(data)
    if url := database_url or settings.database_url:
        _look_at_postgres(url, upgrade_schema=False)
        return
    path = settings.data / DATABASE_FILE
    if not path.exists():
        raise BrokerError(f"{path} does not exist: run a batch, or `broker db upgrade`")
    engine = open_read_only(path)
    try:
        require_current(engine)
    finally:
        engine.dispose()
    say(f"{path} is up to date.")


@app.command("grants")
def grants(prefix: PrefixOption = "broker") -> None:
    """Print the SQL that makes PostgreSQL roles with least rights: owner, writer, reader and auditor.

    For a superuser to read and run, after an upgrade: `broker db grants | psql "$ADMIN_URL"`.
    """
    from broker.database.drivers.postgres.grants import grant_statements

    for statement in ("BEGIN", *grant_statements(prefix), "COMMIT"):
        say(f"{statement};")


def _look_at_postgres(url: str, *, upgrade_schema: bool) -> None:
    from broker.database.drivers.postgres.connections import place_of
    from broker.database.drivers.postgres.database import open_postgres

    open_postgres(url, name="broker db", upgrade_schema=upgrade_schema).close()
    say(f"The database at {place_of(url).set(drivername='postgresql').render_as_string()} is up to date.")
