"""`broker up`: the embedded form as a service, with its HTTP door."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

import typer

from broker.bootstrap.embedded import Embedded
from broker.catalog.lanes import load_lanes
from broker.catalog.shares import load_shares
from broker.cli.options import CatalogOption, DataOption, read_settings
from broker.cli.printing import say
from broker.cli.signals import stopping_on_signals
from broker.logs import log_to_file
from broker.sdk.http import remember_url

__all__ = ["app"]

app = typer.Typer(add_completion=False)

_UPLOAD_BYTES_MAX = 10_000_000_000


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
    # Here, because the web framework would make every other command wait for it.
    from broker.api.app import LOOPBACK_NAMES, make_app
    from broker.api.desk import Desk
    from broker.api.server import Door, listen, load_or_create_token
    from broker.api.tokens import local_token

    settings = read_settings(data, catalog, log_level)
    lanes = load_lanes(settings.catalog)
    shares = load_shares(settings.catalog, lanes)
    stop = threading.Event()
    with stopping_on_signals(stop), Embedded(settings.data, lanes, shares=shares) as embedded:
        log_to_file(settings.data / "broker.log", settings.log_level)
        taken = listen(host, port)
        embedded.start()
        tokens = local_token(load_or_create_token(settings.data))
        desk = Desk(embedded.front, settings.batch_lines_max, _UPLOAD_BYTES_MAX)
        door = Door(make_app(desk, tokens, (*LOOPBACK_NAMES, host)), taken)
        door.start()
        try:
            remember_url(settings.data, door.url)
            _introduce(door.url, embedded, settings.data)
            stop.wait()
        finally:
            say("Stopping: handing back what runs…")
            embedded.front.wakeups.endings.announce_stop()
            door.stop()
    say("Stopped. Everything accepted is kept; `broker up` goes on from here.")


def _introduce(url: str, embedded: Embedded, data: Path) -> None:
    from broker.api.views import price_text

    say(f"Listening on {url}, token in {data / 'token'}")
    for lane in embedded.front.lanes:
        stand_in = ", a CPU standing in" if lane.stand_in else ""
        where = f"{lane.provider}, {lane.region}, {lane.accelerator}, {lane.market}{stand_in}"
        say(f"  {lane.name:<24} {price_text(lane):<12} {where}; runs {', '.join(lane.engine.models)}")
    say(f"Ledger in {data}    (broker ledger summary --data {data})")
    say("Ready. Ctrl-C stops it.")
