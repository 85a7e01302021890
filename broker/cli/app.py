"""Every command, hung where it is found."""

from __future__ import annotations

import typer

from broker.cli import batch, database, jobs, lanes, ledger, up, uploads

__all__ = ["app"]

app = typer.Typer(
    name="broker",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Submit an inference job once; it ends at the lowest defensible cost, and the ledger proves it.",
)
app.command("up")(up.up)
uploads.register(batch.app)
app.add_typer(batch.app, name="batch")
app.add_typer(jobs.app, name="jobs")
app.add_typer(lanes.app, name="lanes")
app.add_typer(ledger.app, name="ledger")
app.add_typer(database.app, name="db")
