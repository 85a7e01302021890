"""`broker lanes`: which lanes a running broker has, and whether they get new work."""

from __future__ import annotations

import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from broker.cli.options import DataOption, FormatOption, UrlOption, open_client, read_settings
from broker.cli.printing import OutputFormat, print_rows, say
from broker.cli.signals import stopping_on_signals
from broker.domain.errors import UsageError

if TYPE_CHECKING:
    from broker.domain.desired import LaneDesired
    from broker.sdk.http import LaneView

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The lanes of a running broker.")

_LOOK_SECONDS = 1.0

NameArgument = Annotated[str, typer.Argument(help="The lane's name.")]


@app.command("list")
def list_lanes(shape: FormatOption = OutputFormat.TABLE, url: UrlOption = None, data: DataOption = None) -> None:
    """All lanes: state, price, and how many shards each has."""
    with open_client(data, url) as client:
        lanes = client.lanes()
    rows = [
        {
            "lane": lane.name,
            "state": _state(lane),
            "price": lane.price,
            "shards": lane.shards,
            "slots": lane.slots,
            "ready": lane.ready,
            "desired": lane.desired,
            "jobs/s": "; ".join(f"{1 / found:.3g}" for found in lane.job_seconds.values() if found > 0),
            "provider": lane.provider,
            "region": lane.region,
            "accelerator": lane.accelerator,
            "market": lane.market,
            "models": ", ".join(lane.models),
        }
        for lane in lanes
    ]
    print_rows(rows, shape, keys=3, empty="There are no lanes.")


@app.command("watch")
def watch(
    trusted: Annotated[
        Path | None, typer.Option("--trusted", help="The broker's public keys [BROKER_TRUSTED, or broker.pub].")
    ] = None,
    shape: FormatOption = OutputFormat.TABLE,
) -> None:
    """What each lane should hold, a line when it changes: taken from the queue `desired` of BROKER_JOBS_BUS_URL.

    For whoever starts and stops instances; one reader, as what one has taken no other hears.
    """
    from broker.keys import read_trusted
    from broker.sdk.desired import DesiredEvents

    settings = read_settings()
    if settings.jobs_bus_url is None:
        raise UsageError("name the jobs bus in BROKER_JOBS_BUS_URL: the broker announces there what lanes should hold")
    events = DesiredEvents(settings.jobs_bus_url, read_trusted(trusted or settings.trusted or Path("broker.pub")))
    stop = threading.Event()
    with stopping_on_signals(stop):
        while not stop.is_set():
            for one in events.receive(_LOOK_SECONDS):
                sys.stdout.write(_line(one, shape) + "\n")
            sys.stdout.flush()
    events.close()


@app.command("pause")
def pause(name: NameArgument, url: UrlOption = None, data: DataOption = None) -> None:
    """Give the lane no new shards, until resumed."""
    _steer(name, "pause", url, data)


@app.command("drain")
def drain(name: NameArgument, url: UrlOption = None, data: DataOption = None) -> None:
    """Give the lane no new shards; it is drained once what it has is done."""
    _steer(name, "drain", url, data)


@app.command("resume")
def resume(name: NameArgument, url: UrlOption = None, data: DataOption = None) -> None:
    """Give the lane new shards again."""
    _steer(name, "resume", url, data)


def _line(one: LaneDesired, shape: OutputFormat) -> str:
    at = datetime.fromtimestamp(one.at_us / 1_000_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    fields = {"lane": one.lane, "desired": one.desired, "ready": one.ready, "generation": one.generation, "at": at}
    match shape:
        case OutputFormat.JSON:
            return msgspec.json.encode(fields).decode()
        case OutputFormat.CSV:
            return ",".join(map(str, fields.values()))
        case OutputFormat.TABLE:
            return f"{at}  {one.lane}: {one.desired} desired, {one.ready} ready"


def _resting(lane: LaneView) -> str:
    if not (lane.resting_since and lane.resting_until):  # a broker of an older build
        return f"resting: {lane.resting}"
    since, until = (moment[11:19] for moment in (lane.resting_since, lane.resting_until))
    return f"resting since {since} until {until} UTC: {lane.resting}"


def _state(lane: LaneView) -> str:
    trouble = _resting(lane) if lane.resting else lane.trouble
    slower = "slower than it was" if lane.is_slower else None
    return ", ".join(filter(None, (lane.state, trouble, slower)))


def _steer(name: str, deed: str, url: UrlOption, data: DataOption) -> None:
    with open_client(data, url) as client:
        lane = client.steer_lane(name, deed)
    say(f"{lane.name} is {lane.state}; it has {lane.shards} shard(s).")
