"""`broker db`: the schema."""

from __future__ import annotations

import typer

from broker.bootstrap.embedded import DATABASE_FILE, open_database
from broker.cli.options import DataOption, read_settings
from broker.cli.printing import say
from broker.database.migrating import require_current
from broker.database.sqlite import lock_folder, open_read_only
from broker.domain.errors import BrokerError

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The database's schema.")


@app.command("upgrade")
def upgrade(data: DataOption = None) -> None:
    """Bring the data folder's database up to this program's schema."""
    folder = read_settings(data).data
    lock_folder(folder)
    open_database(folder).close()
    say(f"{folder / DATABASE_FILE} is up to date.")


@app.command("check")
def check(data: DataOption = None) -> None:
    """Say whether this program and the data folder's database fit; exit code 1 if not."""
    path = read_settings(data).data / DATABASE_FILE
    if not path.exists():
        raise BrokerError(f"{path} does not exist: run a batch, or `broker db upgrade`")
    engine = open_read_only(path)
    try:
        require_current(engine)
    finally:
        engine.dispose()
    say(f"{path} is up to date.")
