"""`broker worker`: one lane's worker. Nothing here may load a database."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from broker.cli.memory import keep_heaps, leave_modules_out_of_garbage_collection
from broker.cli.options import CatalogOption, LogLevelOption, read_settings
from broker.cli.printing import say
from broker.cli.signals import stopping_on_signals
from broker.domain.errors import BrokerError, UsageError
from broker.domain.presence import RESOURCE_ID_CHARS_MAX

if TYPE_CHECKING:
    from broker.domain.lane import Lane

__all__ = ["app"]

_LOOK_SECONDS = 1.0

app = typer.Typer(add_completion=False)


@app.command()
def worker(
    lane: Annotated[str, typer.Option("--lane", help="The lane of the catalog that this process works.")],
    url: Annotated[str | None, typer.Option("--url", help="Where the broker listens [BROKER_URL].")] = None,
    key: Annotated[
        Path | None, typer.Option("--key", help="The lane's signing key [BROKER_LANE_KEY, or lane-NAME.key].")
    ] = None,
    trusted: Annotated[
        Path | None, typer.Option("--trusted", help="The broker's public keys [BROKER_TRUSTED, or broker.pub].")
    ] = None,
    catalog: CatalogOption = None,
    drain_seconds: Annotated[float, typer.Option("--drain-seconds", help="To hand back what runs.")] = 10.0,
    resource_id: Annotated[
        str | None,
        typer.Option(
            "--resource-id", help="What the cloud calls this machine [BROKER_RESOURCE_ID, or host and start]."
        ),
    ] = None,
    log_level: LogLevelOption = None,
) -> None:
    """Work one lane, beside its accelerator: no database, only the lane's bus, its key, and the broker's door."""
    from broker.bootstrap.buses import shared_bus_url_of
    from broker.bootstrap.lane_worker import LaneWorker, WorkerTerms
    from broker.catalog.lanes import load_lanes
    from broker.logs import log_to_stderr

    leave_modules_out_of_garbage_collection()
    settings = read_settings(None, catalog, log_level)
    resource = _resource_id(resource_id) or settings.resource_id
    chosen = _lane(lane, load_lanes(settings.catalog))
    broker_url = url or settings.url
    if not broker_url:
        raise UsageError("name the broker's door with --url, or BROKER_URL: a worker claims its shards there")
    if not _is_http(broker_url):
        raise UsageError(f"{broker_url!r} is not the URL of a broker, such as http://127.0.0.1:8470")
    terms = WorkerTerms(
        url=broker_url,
        bus_url=shared_bus_url_of(chosen),
        key=key or settings.lane_key or Path(f"lane-{chosen.name}.key"),
        trusted=trusted or settings.trusted or Path("broker.pub"),
        payloads_url=settings.payloads_url,
        drain_seconds=drain_seconds,
        resource_id=resource,
    )
    log_to_stderr(settings.log_level)
    keep_heaps()
    stop = threading.Event()
    with stopping_on_signals(stop), LaneWorker(chosen, terms) as working:
        if working.start(stop, say):
            say(
                f"Ready: lane {chosen.name}, {chosen.slots} slots, {', '.join(chosen.engine.models)}. SIGTERM stops it."
            )
        while not stop.wait(_LOOK_SECONDS):
            if working.refusal:
                raise BrokerError(working.refusal)
            if not working.is_running:
                raise BrokerError("the worker lost its bus for good; the log says why")
        say("Stopping: handing back what runs…")
    say("Stopped.")


def _resource_id(given: str | None) -> str | None:
    if given and not (given.isprintable() and len(given) <= RESOURCE_ID_CHARS_MAX):
        raise UsageError(
            f"--resource-id is {given[:40]!r}; it must be at most {RESOURCE_ID_CHARS_MAX} printable characters"
        )
    return given


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _lane(name: str, lanes: list[Lane]) -> Lane:
    for lane in lanes:
        if lane.name == name:
            return lane
    raise UsageError(f"--lane is {name!r}; the catalog has {', '.join(sorted(str(lane.name) for lane in lanes))}")
