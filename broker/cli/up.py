"""`broker up`: the embedded form as a service, with its HTTP door."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli.memory import leave_modules_out_of_garbage_collection
from broker.cli.options import CatalogOption, DataOption, read_settings
from broker.cli.printing import say
from broker.cli.signals import stopping_on_signals

if TYPE_CHECKING:
    from broker.bootstrap.embedded import Embedded

__all__ = ["app"]

app = typer.Typer(add_completion=False)


@app.command()
def up(
    data: DataOption = None,
    catalog: CatalogOption = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="Port to listen on; 0 for any.")] = 8470,
    log_level: Annotated[
        str | None, typer.Option("--log-level", help="Of the log file: debug, info, warning, error.")
    ] = None,
) -> None:
    """Run the broker here until Ctrl-C; other terminals submit, wait, cancel and steer it by HTTP."""
    from broker.bootstrap.door import DoorTerms
    from broker.bootstrap.embedded import Embedded
    from broker.catalog.lanes import load_lanes
    from broker.catalog.policy import load_policy
    from broker.logs import log_to_file

    leave_modules_out_of_garbage_collection()
    settings = read_settings(data, catalog, log_level)
    lanes = load_lanes(settings.catalog)
    policy = load_policy(settings.catalog, lanes)
    door = DoorTerms(host=host, port=port, batch_lines_max=settings.batch_lines_max)
    stop = threading.Event()
    with (
        stopping_on_signals(stop),
        Embedded(settings.data, lanes, policy=policy, door=door, on_death=stop.set, say=say) as embedded,
    ):
        log_to_file(settings.data / "broker.log", settings.log_level)
        embedded.start()
        _introduce(embedded, settings.data)
        stop.wait()
        say("Stopping: handing back what runs…")
        embedded.check()
    say("Stopped. Everything accepted is kept; `broker up` goes on from here.")


def _introduce(embedded: Embedded, data: Path) -> None:
    from broker.api.views import price_text

    say(f"Listening on {embedded.url}, token in {data / 'token'}")
    for lane in embedded.front.lanes:
        stand_in = ", a CPU standing in" if lane.stand_in else ""
        where = f"{lane.provider}, {lane.region}, {lane.accelerator}, {lane.market}{stand_in}"
        say(f"  {lane.name:<24} {price_text(lane):<12} {where}; runs {', '.join(lane.engine.models)}")
    say(f"Ledger in {data}    (broker ledger summary --data {data})")
    say("Ready. Ctrl-C stops it.")
