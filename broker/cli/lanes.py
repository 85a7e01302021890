"""`broker lanes`: which lanes a running broker has, and whether they get new work."""

from __future__ import annotations

from typing import Annotated

import typer

from broker.cli.options import DataOption, FormatOption, UrlOption, open_client
from broker.cli.printing import OutputFormat, print_rows, say

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
            "state": f"{lane.state}, resting: {lane.resting}" if lane.resting else lane.state,
            "price": lane.price,
            "shards": lane.shards,
            "slots": lane.slots,
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


def _steer(name: str, deed: str, url: UrlOption, data: DataOption) -> None:
    with open_client(data, url) as client:
        lane = client.steer_lane(name, deed)
    say(f"{lane.name} is {lane.state}; it has {lane.shards} shard(s).")
