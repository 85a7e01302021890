"""`broker quote`: what a file would cost and when it would be done, before anything is run; and how it came out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from broker.cli.options import (
    BatchFileArgument,
    CatalogOption,
    DatabaseOption,
    DataOption,
    FormatOption,
    RequireOption,
    parse_window,
    read_constraints,
    read_settings,
)
from broker.cli.printing import OutputFormat, dollars, print_rows, say
from broker.clock import utc_now_us
from broker.domain.errors import BrokerError, UsageError
from broker.domain.job import Constraints

if TYPE_CHECKING:
    from broker.database.connection import Connection
    from broker.domain.lane import Lane
    from broker.rules.planning import Speeds
    from broker.rules.quoting import ModelQuote

__all__ = ["app"]

app = typer.Typer(add_completion=False)


@app.command()
def quote(
    file: BatchFileArgument,
    window: Annotated[str, typer.Option("--window", help="How long it may take: 15m, 1h, 24h.")] = "24h",
    lanes: Annotated[str | None, typer.Option("--lanes", help="Only these lanes, by name, with commas.")] = None,
    require: RequireOption = None,
    data: DataOption = None,
    catalog: CatalogOption = None,
    database_url: DatabaseOption = None,
    shape: FormatOption = OutputFormat.TABLE,
) -> None:
    """What the file's jobs are expected to cost on each lane that may run them, cheapest first, and for how long.

    At the prices that hold and the speeds learned so far, where there is a ledger; else as the catalog believes.
    """
    from broker.catalog.lanes import load_lanes
    from broker.rules.quoting import quote_model

    settings = read_settings(data, catalog)
    every, speeds = _as_known(settings.data, database_url or settings.database_url, load_lanes(settings.catalog))
    constraints = read_constraints(lanes, require) or Constraints()
    is_served = bool(database_url or settings.database_url)
    jobs, refused = _count(file, constraints, every, by_reference=not is_served or settings.payloads_url is not None)
    quotes: list[ModelQuote] = []
    for model, count in sorted(jobs.items()):
        quotes += quote_model(model, count, constraints, every, speeds)
    if not quotes:
        bad = f" ({refused:,} more lines would be refused)" if refused else ""
        raise UsageError(f"{file}: no lane may run any of its {jobs.total():,} jobs{bad}")
    print_rows([_row(one) for one in quotes], shape)
    if shape is OutputFormat.TABLE:
        _conclude(quotes, jobs.total(), refused, parse_window(window))


def _as_known(data: Path, database_url: str | None, lanes: list[Lane]) -> tuple[list[Lane], Speeds]:
    from broker.bootstrap.ledger_reader import read_ledger
    from broker.ledger.prices import PricedLanes
    from broker.ledger.speeds import learned_speeds

    priced = PricedLanes(lanes)

    def work(connection: Connection) -> Speeds:
        priced.look(connection)
        return learned_speeds(connection, lanes)

    try:
        speeds = read_ledger(data, database_url, work)
    except BrokerError:
        if database_url:
            raise
        return lanes, {}
    return priced.all_at(utc_now_us()), speeds


def _count(file: Path, constraints: Constraints, lanes: list[Lane], *, by_reference: bool) -> tuple[Counter[str], int]:
    """Jobs by model, and lines that would be refused, as intake would have it; `by_reference`: also of long ones."""
    from broker.bootstrap.batch_source import read_once
    from broker.bootstrap.buses import in_one_process
    from broker.domain.job import AcceptedLine
    from broker.intake.batch_lines import Admission, read_chunk
    from broker.rules.grouping import canonical_constraints

    models = {model for lane in lanes for model in lane.engine.models}
    if by_reference:
        lanes = in_one_process(lanes)
    admission = Admission(models, canonical_constraints(constraints), lanes)
    jobs: Counter[str] = Counter()
    names: set[int] = set()  # of hashes, for there may be millions
    refused = before = 0
    with read_once(file) as source:
        at_end = False
        while not at_end:
            chunk = read_chunk(source, before, at_start=before == 0)
            before, at_end = before + chunk.count, chunk.at_end
            for line in chunk.lines:
                found = admission.admit(line)
                if isinstance(found, AcceptedLine) and hash(found.custom_id) not in names:
                    names.add(hash(found.custom_id))
                    jobs[found.model] += 1
                else:
                    refused += 1
    return jobs, refused


def _row(one: ModelQuote) -> dict[str, Any]:
    return {
        "model": one.model,
        "lane": one.lane,
        "jobs": one.jobs,
        "cost_nano_usd": one.cost_nano_usd,
        "job_nano_usd": one.job_cost_nano_usd,
        "seconds": round(one.seconds, 1),
        "price": one.price_version,
        "learned": one.is_learned,
    }


def _conclude(quotes: list[ModelQuote], jobs: int, refused: int, window_seconds: int) -> None:
    from broker.rules.placement.feasible import window_text

    first = {one.model: one for one in reversed(quotes)}
    total = sum(one.cost_nano_usd for one in first.values())
    longest_s = max(one.seconds for one in first.values())
    say(f"{jobs:,} jobs, {refused:,} lines that would be refused: about {dollars(total)} on the cheapest lanes.")
    if longest_s > window_seconds:
        say(f"One instance of them is too slow for the window: it takes about {window_text(longest_s)}.")
