"""`broker lanes`: which lanes a running broker has, and whether they get new work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli.options import DataOption, FormatOption, UrlOption, open_client
from broker.cli.printing import OutputFormat, print_rows, say

if TYPE_CHECKING:
    from broker.client import LaneView

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The lanes of a running broker.")

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
    print_rows(rows, shape, keys=3)


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


def _state(lane: LaneView) -> str:
    trouble = f"resting: {lane.resting}" if lane.resting else lane.trouble
    slower = "slower than it was" if lane.is_slower else None
    return ", ".join(filter(None, (lane.state, trouble, slower)))


def _steer(name: str, deed: str, url: UrlOption, data: DataOption) -> None:
    with open_client(data, url) as client:
        lane = client.steer_lane(name, deed)
    say(f"{lane.name} is {lane.state}; it has {lane.shards} shard(s).")
