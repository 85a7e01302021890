"""`broker batch create|get|cancel|list`: batches on a running broker."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from broker.cli.options import (
    BatchFileArgument,
    DataOption,
    FormatOption,
    OverwriteOption,
    RequireOption,
    UrlOption,
    open_client,
)
from broker.cli.printing import OutputFormat, cost_text, print_json, print_rows, say, terminal, waste_text
from broker.domain.errors import BrokerError, UsageError, reason_of
from broker.domain.money import format_usd, nano_from_usd
from broker.output_paths import check_apart, check_free, check_writable, draft_of, set_aside, stat_of_input

if TYPE_CHECKING:
    from broker.sdk.http import BatchState, Client

__all__ = ["register", "rerun"]

BatchArgument = Annotated[str, typer.Argument(help="A batch's id: batch_…")]


def register(app: typer.Typer) -> None:
    """Add the commands to `broker batch`."""
    for name, command in (("create", create), ("get", show), ("cancel", cancel), ("list", list_batches)):
        app.command(name)(command)


def create(
    file: BatchFileArgument,
    window: Annotated[
        str | None, typer.Option("--window", help="When it must be done: 90s, 15m, 1h, 2d [24h].")
    ] = None,
    max_cost: Annotated[
        str | None, typer.Option("--max-cost", help="Start no more jobs once this many dollars are spent or held.")
    ] = None,
    lanes: Annotated[str | None, typer.Option("--lanes", help="Only these lanes, by name, with commas.")] = None,
    require: RequireOption = None,
    name: Annotated[str | None, typer.Option("--name", help="What you call it.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end, showing progress.")] = False,
    output: Annotated[Path | None, typer.Option("--output", help="With --wait: put the replies here.")] = None,
    errors: Annotated[Path | None, typer.Option("--errors", help="With --wait: put the refused lines here.")] = None,
    overwrite: OverwriteOption = False,
    shape: FormatOption = OutputFormat.TABLE,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """Upload a file to a running broker as a batch; prints its id."""
    if not wait and (output or errors):
        raise UsageError("--output and --errors need --wait: the files are there once the batch is finished")
    _check_places(output, errors, overwrite, stat_of_input(file))
    with open_client(data, url) as client:
        found = client.create_batch(file, window=window, max_cost=max_cost, lanes=lanes, require=require, name=name)
        if wait:
            if shape is OutputFormat.TABLE:
                say(found.id)
            found = _follow(client, found)
            _download_both(client, found.id, output, errors, overwrite)
    if shape is OutputFormat.TABLE and not wait:
        say(found.id)
    else:
        _print_batch(found, shape)
    if wait and found.succeeded == 0:
        raise BrokerError("no line succeeded; the error file says why")


class Places(NamedTuple):
    """Where a command puts a batch's files, and whether they take the place of what is there."""

    output: Path | None
    errors: Path | None
    overwrite: bool


def rerun(
    batch: str,
    terms: tuple[str | None, str | None, str | None],
    places: Places,
    *,
    wait: bool,
    url: str | None,
    data: Path | None,
) -> None:
    """`broker batch rerun` on a running broker: prints the id of the batch that runs the lines again.

    `terms` are its --only, --window and --max-cost.
    """
    if not wait and (places.output or places.errors):
        raise UsageError("--output and --errors need --wait: the files are there once the batch is finished")
    _check_places(*places, None)
    only, window, max_cost = terms
    with open_client(data, url) as client:
        found = client.rerun_batch(batch, only=only, window=window, max_cost=max_cost)
        say(found.id)
        if not wait:
            return
        found = _follow(client, found)
        _download_both(client, found.id, *places)
    _print_batch(found, OutputFormat.TABLE)
    if found.succeeded == 0:
        raise BrokerError("no line succeeded; the error file says why")


def show(
    batch: BatchArgument,
    output: Annotated[Path | None, typer.Option("--output", help="Put the replies of a finished batch here.")] = None,
    errors: Annotated[Path | None, typer.Option("--errors", help="Put its refused and failed lines here.")] = None,
    overwrite: OverwriteOption = False,
    shape: FormatOption = OutputFormat.TABLE,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """How far a batch is; with --output and --errors, its files."""
    _check_places(output, errors, overwrite, None)
    with open_client(data, url) as client:
        _print_batch(client.batch(batch), shape)
        _download_both(client, batch, output, errors, overwrite)


def cancel(
    batch: BatchArgument, shape: FormatOption = OutputFormat.TABLE, url: UrlOption = None, data: DataOption = None
) -> None:
    """Ask for the end of all jobs of a batch; what has ended stays, and its files are written."""
    with open_client(data, url) as client:
        _print_batch(client.cancel_batch(batch), shape)


def list_batches(shape: FormatOption = OutputFormat.TABLE, url: UrlOption = None, data: DataOption = None) -> None:
    """The newest hundred batches."""
    with open_client(data, url) as client:
        found = client.batches()
    rows = [
        {
            "batch": one.id,
            "name": one.name or "",
            "status": one.status,
            "lines": one.lines_read,
            "succeeded": one.succeeded,
            "failed": one.failed + one.refused_lines,
            "cancelled": one.cancelled,
            "expired": one.expired,
            **_costs(one, shape),
            "created": one.created_at,
        }
        for one in found
    ]
    print_rows(rows, shape, keys=3, empty="There are no batches.")


def _costs(batch: BatchState, shape: OutputFormat) -> dict[str, str]:
    if shape is not OutputFormat.TABLE:
        return {"cost_usd": batch.cost_usd, "unknown_usd": batch.unknown_usd}
    return {"cost": cost_text(nano_from_usd(batch.cost_usd), nano_from_usd(batch.unknown_usd), format_usd)}


def _follow(client: Client, batch: BatchState) -> BatchState:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = terminal()
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("Running", total=None)
        for found in client.follow_batch(batch.id):
            batch = found
            total = found.lines_read if found.is_read else None
            bar.update(task, completed=found.ended, total=total, description=found.status.capitalize())
    return batch


def _check_places(output: Path | None, errors: Path | None, overwrite: bool, read: os.stat_result | None) -> None:
    """Before anything is sent. Raises UsageError."""
    places = {name: path for name, path in (("--output", output), ("--errors", errors)) if path is not None}
    if not places:
        return
    check_apart(places, {"the input": read})
    if not overwrite:
        check_free(list(places.values()))
    check_writable(list(places.values()))


def _download_both(client: Client, batch_id: str, output: Path | None, errors: Path | None, overwrite: bool) -> None:
    """Whole files or none: what is there gives way when all has come."""
    wanted = {path: which for path, which in ((output, "output"), (errors, "errors")) if path is not None}
    try:
        for path, which in wanted.items():
            _download(client, batch_id, which, path)
        kept = [] if overwrite else set_aside(list(wanted))
        for path in wanted:
            _replace(path)
    finally:
        for path in wanted:
            draft_of(path).unlink(missing_ok=True)
    for before, aside in kept:  # on standard error: programs read the rest
        sys.stderr.write(f"{before.name} of an earlier run is kept as {aside}\n")


def _download(client: Client, batch_id: str, which: str, path: Path) -> None:
    try:
        with draft_of(path).open("wb") as file:
            for chunk in client.download(batch_id, which):
                file.write(chunk)
    except OSError as error:
        raise BrokerError(f"can't write {path}: {reason_of(error)}") from None


def _replace(path: Path) -> None:
    try:
        draft_of(path).replace(path)
    except OSError as error:
        raise BrokerError(f"can't write {path}: {reason_of(error)}") from None


def _print_batch(batch: BatchState, shape: OutputFormat) -> None:
    if shape is OutputFormat.JSON:
        print_json(batch)
        return
    if shape is OutputFormat.CSV:
        print_rows([{name: getattr(batch, name) for name in batch.__struct_fields__}], shape)
        return
    say(f"{batch.id}  {batch.status}" + (f"  {batch.name}" if batch.name else ""))
    say(
        f"  {batch.lines_read:,} lines: {batch.succeeded:,} succeeded, {batch.failed:,} failed,"
        f" {batch.refused_lines:,} refused, {batch.cancelled:,} cancelled, {batch.expired:,} expired"
    )
    cost, wasted, unknown = map(nano_from_usd, (batch.cost_usd, batch.wasted_usd, batch.unknown_usd))
    say(f"  cost {cost_text(cost, unknown, format_usd)}{waste_text(wasted, unknown, format_usd)}; due {batch.deadline}")
