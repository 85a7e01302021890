"""The command line: it reads options, calls the broker and prints; it decides nothing."""

from __future__ import annotations

import sys

import typer

from broker.cli import batch, database, jobs, lanes, ledger, up, uploads
from broker.cli.printing import complain
from broker.domain.errors import BrokerError, UsageError

__all__ = ["main"]

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


def main() -> None:
    """The `broker` command. An error is one sentence; exit code 2 for a wrong command or input, 1 for the rest."""
    try:
        app()
    except UsageError as error:
        complain(str(error))
        sys.exit(2)
    except BrokerError as error:
        complain(str(error))
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(1)
