"""`broker batch`: files of jobs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli import uploads
from broker.cli.memory import leave_modules_out_of_garbage_collection
from broker.cli.options import (
    BatchFileArgument,
    CatalogOption,
    DataOption,
    OverwriteOption,
    parse_window,
    read_settings,
)
from broker.cli.printing import OutputFormat, complain, dollars, print_rows, say, tell_what_is_kept, terminal
from broker.domain.errors import UsageError
from broker.domain.money import nano_from_usd

if TYPE_CHECKING:
    from broker.bootstrap.batch_run import BatchRun, RunOptions
    from broker.bootstrap.batch_run import Progress as BatchProgress
    from broker.bootstrap.embedded import Embedded
    from broker.domain.lane import Lane
    from broker.settings import Settings

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Files of jobs, in OpenAI's batch format.")

_INTERRUPTED = 130


@app.callback()
def group() -> None:
    """Files of jobs, in OpenAI's batch format."""


@app.command("run")
def run(
    file: BatchFileArgument,
    output: Annotated[
        Path | None, typer.Option("--output", help="Where the replies go [FILE.output.jsonl, errors beside it].")
    ] = None,
    window: Annotated[
        str | None, typer.Option("--window", help="When it must be done: 90s, 15m, 1h, 2d [24h].")
    ] = None,
    max_cost: Annotated[
        str | None, typer.Option("--max-cost", help="Start no more jobs once this many dollars are spent or held.")
    ] = None,
    lanes: Annotated[str | None, typer.Option("--lanes", help="Only these lanes, by name, with commas.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Run the file anew, though it was run before.")] = False,
    overwrite: OverwriteOption = False,
    data: DataOption = None,
    catalog: CatalogOption = None,
) -> None:
    """Work a file off here and now, and leave the ledger behind. Interrupted, it resumes with the same command."""
    from broker.bootstrap.batch_run import RunOptions

    leave_modules_out_of_garbage_collection()
    names = tuple(sorted(name.strip() for name in lanes.split(",") if name.strip())) if lanes else ()
    if lanes is not None and not names:  # a limit that names nothing is a mistake, and no limit would be a costly one
        raise UsageError(f"--lanes is {lanes!r}, which names none: leave it out for all lanes")
    options = RunOptions(
        source=file,
        output=output,
        window_seconds=parse_window(window) if window else None,
        max_cost_nano_usd=_budget(max_cost),
        lanes=names,
        new=new,
        overwrite=overwrite,
    )
    # Nothing runs yet that would have to be stopped with care: SIGTERM is what Ctrl-C is.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _run(options, read_settings(data, catalog))
    except KeyboardInterrupt:
        say("Stopped; run the same command again to go on.")
        raise typer.Exit(_INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(options: RunOptions, settings: Settings) -> None:
    from broker.bootstrap.batch_run import BatchRun, allowed_lanes
    from broker.bootstrap.batch_source import open_source
    from broker.bootstrap.embedded import Embedded
    from broker.catalog.lanes import load_lanes
    from broker.catalog.policy import load_policy
    from broker.logs import log_to_file

    every = load_lanes(settings.catalog)
    policy, chosen = load_policy(settings.catalog, every), allowed_lanes(every, options.lanes)
    with open_source(options.source, settings.data, settings.batch_lines_max) as source:
        log_to_file(settings.data / "broker.log", settings.log_level)
        with Embedded(settings.data, chosen, policy=policy) as embedded:
            batch = BatchRun(embedded, options, source)
            _introduce(batch, chosen, settings.catalog)
            if not batch.is_finished:
                _work_off(embedded, batch)
            _conclude(batch, settings.data)


def _budget(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return nano_from_usd(text.removeprefix("$"))
    except ValueError as error:
        raise UsageError(f"--max-cost: {error}") from None


def _introduce(batch: BatchRun, lanes: list[Lane], catalog: str) -> None:
    from broker.catalog.lanes import DEMO_CATALOG

    progress = batch.progress()
    tell_what_is_kept(batch.set_aside)
    if batch.is_finished:
        say("This file has been worked off before; this is its result (--new runs it again).")
    elif batch.is_resumed:
        say(f"Resuming: {progress.ended:,} lines ended before and are not run again.")
    if catalog == DEMO_CATALOG and any(lane.stand_in for lane in lanes):
        say(
            "Demo lanes: this machine's CPU stands in for each cloud's accelerator. Times are real; "
            "the dollars are what these seconds would have cost there at list price."
        )


def _work_off(embedded: Embedded, batch: BatchRun) -> None:
    try:
        with terminal().status("Starting the engines…"):
            embedded.start()
        with _polite_interrupt(batch):
            _show_progress(batch)
    except KeyboardInterrupt:
        say()
        with terminal().status("Stopping: handing back what runs…"):
            batch.stop_reading()
            embedded.stop()
        say("Stopped. Finished jobs are kept; run the same command again to go on from here.")
        raise typer.Exit(_INTERRUPTED) from None
    finally:
        batch.stop_reading()


@contextmanager
def _polite_interrupt(batch: BatchRun) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the run between two steps; outside, they are what they were."""
    before = {number: signal.signal(number, lambda *_: batch.interrupt()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show_progress(batch: BatchRun) -> None:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("failed {task.fields[failed]}"),
        TextColumn("{task.fields[cost]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=terminal()) as bar:
        task = bar.add_task("Running", total=None, failed=0, cost=dollars(0))
        for progress in batch.work():
            bar.update(
                task,
                description=_doing(batch),
                completed=progress.ended,
                total=_lines_in_all(progress),
                failed=progress.failed,
                cost=dollars(progress.counts.cost_nano_usd),
            )


def _doing(batch: BatchRun) -> str:
    resting = batch.resting_lanes()
    return "Running" if not resting else "Running; at rest: " + ", ".join(f"{lane} ({why})" for lane, why in resting)


def _lines_in_all(progress: BatchProgress) -> int | None:
    """Known once the file is read; before, judged by how many bytes are."""
    record = progress.record
    if record.read_us is not None:
        return record.lines_in
    return record.lines_in * record.source_bytes // record.read_bytes if record.read_bytes else None


def _conclude(batch: BatchRun, data: Path) -> None:
    progress = batch.progress()
    rows = batch.result()
    say()
    print_rows(rows, OutputFormat.TABLE, title="By provider")
    counts = progress.counts
    say(
        f"{progress.record.lines_in:,} lines: {counts.succeeded:,} succeeded, {progress.failed:,} in the error file. "
        f"Cost {dollars(counts.cost_nano_usd)}, of which wasted {dollars(counts.wasted_nano_usd)}."
    )
    unknown = sum(row["unknown_upper_nano_usd"] for row in rows)
    if unknown:
        say(f"Attempts that were lost on the way cost at most {dollars(unknown)} more; nobody could measure them.")
    say(f"Output   {progress.record.output_path}")
    say(f"Errors   {progress.record.error_path}")
    say(f"Ledger   {data}    (broker ledger summary --by provider,model --data {data})")
    if progress.failed == progress.record.lines_in:
        complain("no line succeeded; the error file says why")
        raise typer.Exit(1)


uploads.register(app)
