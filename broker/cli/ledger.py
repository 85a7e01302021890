"""`broker ledger`: what it cost, how long it took, and whether the ledger is as it was written."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from broker.batch_run import TENANT
from broker.cli.options import DataOption, FormatOption, read_settings
from broker.cli.printing import OutputFormat, dollars, print_rows, say
from broker.domain.errors import BrokerError, UsageError
from broker.domain.ids import parse_id
from broker.ledger.questions import GROUP_KEYS, Filters, summary
from broker.ledger.verifying import verify
from broker.reading import open_reader

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="What it cost, how long it took, where it ran.")


@app.command("summary")
def show_summary(
    by: Annotated[
        str, typer.Option("--by", help=f"Keys to group by, with commas: {', '.join(GROUP_KEYS)}.")
    ] = "provider",
    batch: Annotated[str | None, typer.Option("--batch", help="Only this batch.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="Only from this UTC time on, as 2026-11-22[T10:00].")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Only before this UTC time.")] = None,
    shape: FormatOption = OutputFormat.TABLE,
    data: DataOption = None,
) -> None:
    """Jobs, attempts, tokens, cost, waste and latencies by provider, model, day, or whatever you ask for."""
    keys = [key.strip() for key in by.split(",") if key.strip()]
    filters = Filters(
        tenant_id=TENANT,
        batch_id=_batch_id(batch),
        since_us=_time_us("--since", since),
        until_us=_time_us("--until", until),
    )
    with open_reader(read_settings(data).data) as connection:
        rows = summary(connection, keys, filters)
    print_rows(rows, shape, keys=len(keys))


@app.command("verify")
def show_verification(data: DataOption = None) -> None:
    """Recompute every row's hash and every stream's chain; exit code 1 if anything is not as it was written."""
    with open_reader(read_settings(data).data) as connection:
        found = verify(connection)
    size = f"{found.rows:,} rows in {found.batches:,} batches of {found.streams} streams"
    say(f"{size}, {dollars(found.cost_nano_usd)} in all.")
    for fault in found.faults:
        say(f"FAULT  {fault}")
    if found.faults:
        raise BrokerError(f"the ledger is not as it was written: {len(found.faults)} faults")
    say("Every row is as it was written.")


def _batch_id(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        return parse_id("batch", text)
    except ValueError as error:
        raise UsageError(f"--batch: {error}") from None


def _time_us(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"{option} is {text!r}; it must be a date or time such as 2026-11-22 or 2026-11-22T10:00"
        ) from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return int(moment.timestamp() * 1_000_000)
