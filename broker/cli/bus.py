"""`broker bus`: the queues that lanes need on their buses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli.options import CatalogOption, FormatOption, read_settings
from broker.cli.printing import OutputFormat, print_rows, say
from broker.domain.bus_jobs import JOBS_QUEUE
from broker.domain.desired import DESIRED_QUEUE
from broker.domain.errors import BrokerError, UsageError

if TYPE_CHECKING:
    from broker.bus.provisioning import BusPlan

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The queues that lanes need on their buses.")

BusUrlOption = Annotated[
    str | None, typer.Option("--url", help="One bus's URL, for all queues, instead of each lane's own.")
]


@app.command("plan")
def plan(catalog: CatalogOption = None, url: BusUrlOption = None, shape: FormatOption = OutputFormat.TABLE) -> None:
    """What is there, what is missing and what differs; changes nothing. Exit code 1 when something must be done."""
    from broker.bus.provisioning import plan_bus

    found = _asked(plan_bus, catalog, url)
    _show(found, shape)
    if not found.is_complete:
        raise typer.Exit(1)


@app.command("apply")
def apply(catalog: CatalogOption = None, url: BusUrlOption = None, shape: FormatOption = OutputFormat.TABLE) -> None:
    """Say what is to be done, then do it. What only a person may change is left, and named; then the exit code is 1."""
    from broker.bus.provisioning import apply_bus, plan_bus

    if shape is OutputFormat.TABLE:
        _show_difference(_asked(plan_bus, catalog, url))
    found = _asked(apply_bus, catalog, url)
    _show(found, shape)
    if not found.is_complete:
        raise typer.Exit(1)


def _asked(ask: Callable[[Mapping[str, Sequence[str]]], BusPlan], catalog: str | None, url: str | None) -> BusPlan:
    from broker.bootstrap.buses import bus_url_of
    from broker.bus.driver import BusUnavailable
    from broker.catalog.lanes import load_lanes

    settings = read_settings(catalog=catalog)
    wanted: dict[str, list[str]] = defaultdict(list)
    if settings.jobs_bus_url is not None:
        wanted[url or settings.jobs_bus_url] += [JOBS_QUEUE, DESIRED_QUEUE]
    for lane in load_lanes(settings.catalog):
        wanted[url or bus_url_of(lane)] += [lane.shards_queue, lane.events_queue]
    try:
        return ask(wanted)
    except BusUnavailable as error:
        raise BrokerError(str(error)) from None
    except ValueError as error:
        raise UsageError(str(error)) from None


def _show_difference(planned: BusPlan) -> None:
    """A line for each thing that isn't as it should be: `+` where it is missing, `~` where it is in another form."""
    from broker.bus.provisioning import QueueState

    marks = {QueueState.MISSING: "+", QueueState.DIFFERENT: "~"}
    for line in planned.lines:
        if line.state in marks:
            say(f"{marks[line.state]} {line.name}: {line.note} ({line.bus})")


def _show(found: BusPlan, shape: OutputFormat) -> None:
    from broker.bus.provisioning import QueueState

    rows = [{"bus": line.bus, "queue": line.name, "state": line.state.value, "note": line.note} for line in found.lines]
    print_rows(rows, shape, keys=4, empty="There are no queues.")
    if shape is not OutputFormat.TABLE:
        return
    counts = {state: sum(line.state is state for line in found.lines) for state in QueueState}
    if counts[QueueState.MISSING]:
        say(f"{counts[QueueState.MISSING]} missing: `broker bus apply` makes them.")
    elif found.is_complete:
        say("Nothing is left to do.")
