"""`broker batch`: files of jobs."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.cli import uploads
from broker.cli.memory import leave_modules_out_of_garbage_collection
from broker.cli.options import (
    BatchFileArgument,
    CatalogOption,
    DataOption,
    OverwriteOption,
    UrlOption,
    parse_window,
    read_settings,
)
from broker.cli.printing import (
    OutputFormat,
    complain,
    cost_text,
    dollars,
    print_rows,
    resting_words,
    say,
    tell_what_is_kept,
    terminal,
    waste_text,
)
from broker.cli.run_lines import RunLines
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
    _run_stoppable(lambda: _run(options, read_settings(data, catalog)))


def _run_stoppable(work: Callable[[], None]) -> None:
    """Nothing runs yet that would have to be stopped with care: SIGTERM is what Ctrl-C is."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        work()
    except KeyboardInterrupt:
        say("Stopped; run the same command again to go on.")
        raise typer.Exit(_INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@app.command("rerun")
def rerun(
    target: Annotated[str, typer.Argument(help="A batch's id, or the file that was run.", metavar="BATCH|FILE")],
    only: Annotated[
        str | None,
        typer.Option("--only", help="Lines that ended so: failed, expired, cancelled; with commas [all three]."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Where the replies of all runs go [where those of the last one are]."),
    ] = None,
    window: Annotated[str | None, typer.Option("--window", help="When it must be done [as long as before].")] = None,
    max_cost: Annotated[
        str | None,
        typer.Option("--max-cost", help="A budget for this run, in dollars [what is left of the last one's]."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="On a running broker: wait for the end.")] = False,
    errors: Annotated[Path | None, typer.Option("--errors", help="With --wait: put the error lines here.")] = None,
    overwrite: OverwriteOption = False,
    url: UrlOption = None,
    data: DataOption = None,
    catalog: CatalogOption = None,
) -> None:
    """Run the lines again that did not succeed; the files then hold what all runs brought.

    Here and now, like `batch run`; or on a running broker, where --url names one or one has the data folder.
    """
    from broker.domain.rerun import rerun_outcomes

    settings = read_settings(data, catalog)
    try:
        outcomes = rerun_outcomes(only)
    except ValueError as error:
        raise UsageError(f"--only: {error}") from None
    is_file = Path(target).is_file()
    if url or (not is_file and (settings.url or _has_broker(settings.data))):
        if is_file:
            raise UsageError(f"a running broker knows batches by their ids: name that of {target}, batch_…")
        places = uploads.Places(output, errors, overwrite)
        uploads.rerun(target, (only, window, max_cost), places, wait=wait, url=url, data=data)
        return
    if wait or errors:
        raise UsageError("--wait and --errors are for a running broker: name it with --url")
    asked = {
        "target": target,
        "outcomes": outcomes,
        "output": output,
        "window_seconds": parse_window(window) if window else None,
        "max_cost_nano_usd": _budget(max_cost),
        "overwrite": overwrite,
    }
    _run_stoppable(lambda: _rerun_here(settings, asked))


def _has_broker(data: Path) -> bool:
    from broker.database.drivers.sqlite.database import is_folder_in_use

    return is_folder_in_use(data)


def _rerun_here(settings: Settings, asked: dict[str, Any]) -> None:
    """`asked`: the fields of `RerunOptions`."""
    from broker.bootstrap.batch_rerun import BatchRerun, RerunOptions
    from broker.bootstrap.embedded import Embedded
    from broker.catalog.lanes import load_lanes
    from broker.catalog.policy import load_policy
    from broker.logs import log_to_file

    leave_modules_out_of_garbage_collection()
    lanes = load_lanes(settings.catalog)
    log_to_file(settings.data / "broker.log", settings.log_level)
    policy = load_policy(settings.catalog, lanes)
    with Embedded(settings.data, lanes, policy=policy, say=_say_between) as embedded:
        batch = BatchRerun(embedded, RerunOptions(**asked))
        _introduce(batch, lanes, settings.catalog)
        _work_off(embedded, batch)
        _conclude(batch, settings.data, asked["target"])


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
        with Embedded(settings.data, chosen, policy=policy, say=_say_between) as embedded:
            batch = BatchRun(embedded, options, source)
            _introduce(batch, chosen, settings.catalog)
            if not batch.is_finished:
                _work_off(embedded, batch)
            _conclude(batch, settings.data, str(options.source))


def _say_between(sentence: str) -> None:
    """Above what moves, where something moves."""
    terminal().print(sentence, markup=False)


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
    if terminal().is_terminal:
        _show_bar(batch)
        return
    lines = RunLines()
    for progress in batch.work():
        total = _lines_in_all(progress)
        of = "" if total is None else f" of {total:,}"
        cost = dollars(progress.counts.cost_nano_usd)
        state = f"Running: {progress.ended:,}{of} lines ended, {progress.failed:,} in the error file; {cost}"
        for line in lines.look(time.monotonic(), state, dict(batch.resting_lanes()), batch.lanes_on_trial()):
            say(line)


def _show_bar(batch: BatchRun) -> None:
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
                cost=_spent(progress),
            )


def _spent(progress: BatchProgress) -> str:
    counts = progress.counts
    more = f" (or up to {dollars(counts.at_most_nano_usd)})" if counts.unknown_nano_usd else ""
    return dollars(counts.cost_nano_usd) + more


def _doing(batch: BatchRun) -> str:
    resting = batch.resting_lanes()
    if not resting:
        return "Running"
    return f"Running; resting: {', '.join(resting_words(lane, rest) for lane, rest in resting)}"


def _lines_in_all(progress: BatchProgress) -> int | None:
    """Known once the file is read; before, judged by how many bytes are."""
    record = progress.record
    if record.read_us is not None:
        return record.lines_in
    return record.lines_in * record.source_bytes // record.read_bytes if record.read_bytes else None


def _conclude(batch: BatchRun, data: Path, name: str) -> None:
    progress = batch.progress()
    rows = batch.result()
    say()
    print_rows(rows, OutputFormat.TABLE, title="By provider")
    counts = progress.counts
    unknown = sum(row["unknown_upper_nano_usd"] for row in rows)
    say(
        f"{progress.record.lines_in:,} lines: {counts.succeeded:,} succeeded, {progress.failed:,} in the error file. "
        f"Cost {cost_text(counts.cost_nano_usd, unknown)}{waste_text(counts.wasted_nano_usd, unknown)}."
    )
    if unknown:
        say("What is unknown is of attempts whose end nobody saw, or whose tokens nobody stated.")
    if whole := batch.whole():
        left = whole.lines - whole.succeeded
        say(f"With all runs before: {whole.lines:,} lines, {whole.succeeded:,} succeeded, {left:,} in the error file.")
    say(f"Output   {progress.record.output_path}")
    say(f"Errors   {progress.record.error_path}")
    say(f"Ledger   {data}    (broker ledger summary --by provider,model --data {data})")
    if ended_badly := counts.ended - counts.succeeded:
        say(
            f"Left     {_lines(ended_badly)} that did not succeed: `broker batch rerun {name} --data {data}` runs just"
            f" those; `broker batch run` with --new runs the whole file."
        )
    if progress.failed == progress.record.lines_in:
        complain("no line succeeded; the error file says why")
        raise typer.Exit(1)


def _lines(count: int) -> str:
    return "1 line" if count == 1 else f"{count:,} lines"


uploads.register(app)
