"""`broker instances`: which machines work, under the names that bills use, since when and for how much."""

from __future__ import annotations

from typing import Annotated

import typer

from broker.cli.options import DataOption, FormatOption, UrlOption, open_client
from broker.cli.printing import OutputFormat, print_rows, say

__all__ = ["app"]

_SECONDS_PER_HOUR = 3_600

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The instances of a running broker's lanes.")


@app.callback()
def group() -> None:
    """The instances of a running broker's lanes."""


@app.command("list")
def list_instances(
    lane: Annotated[str | None, typer.Option("--lane", help="Of this lane alone.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Also those that stopped or were lost.")] = False,
    shape: FormatOption = OutputFormat.TABLE,
    url: UrlOption = None,
    data: DataOption = None,
) -> None:
    """Live instances: state, resource id, since when, hours, and their list price so far."""
    with open_client(data, url) as client:
        found = client.instances(lane, ended=every)
    if not found and shape is OutputFormat.TABLE:
        say("No instances: `broker worker` is one, from its start to its end.")
        return
    rows: list[dict[str, object]] = [
        {
            "lane": one.lane,
            "state": one.state,
            "resource_id": one.resource_id,
            "since": one.started_at,
            "until": one.stopped_at or (one.last_seen_at if one.state == "lost" else None),
            "hours": f"{one.seconds / _SECONDS_PER_HOUR:.3f}",
            "list_nano_usd": one.list_cost_nano_usd,
        }
        for one in found
    ]
    if shape is not OutputFormat.TABLE:
        more = [
            {"instance": one.id, "worker": one.worker_id, "slots": one.slots, "seconds": one.seconds} for one in found
        ]
        rows = [row | extra for row, extra in zip(rows, more, strict=True)]
    print_rows(rows, shape, keys=5, empty="There are no instances.")
