"""`broker serve`: the broker's roles as processes of their own."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from broker.catalog.lanes import load_lanes
from broker.catalog.shares import load_shares
from broker.cli.memory import keep_heaps
from broker.cli.options import (
    CatalogOption,
    DatabaseOption,
    DataOption,
    LogLevelOption,
    needed_database_url,
    read_settings,
)
from broker.cli.printing import say
from broker.cli.signals import stopping_on_signals
from broker.domain.errors import UsageError
from broker.logs import log_to_stderr
from broker.settings import Settings

if TYPE_CHECKING:
    from broker.bootstrap.roles import Role
    from broker.bootstrap.served import Served

__all__ = ["app"]

app = typer.Typer(add_completion=False)

_UPLOAD_BYTES_MAX = 10_000_000_000


@app.command()
def serve(
    roles: Annotated[
        list[str] | None, typer.Argument(help="Which roles this process is; all where none is named.")
    ] = None,
    database_url: DatabaseOption = None,
    data: DataOption = None,
    catalog: CatalogOption = None,
    host: Annotated[str, typer.Option("--host", help="Address that the api role listens on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="Its port; 0 for any.")] = 8470,
    name: Annotated[
        list[str] | None, typer.Option("--name", help="Further host names that the api role is called by.")
    ] = None,
    drain_seconds: Annotated[float, typer.Option("--drain-seconds", help="To end what is under way.")] = 10.0,
    log_level: LogLevelOption = None,
) -> None:
    """Be some of the broker's roles, or all, on PostgreSQL and the lanes' own buses, until SIGTERM."""
    from broker.bootstrap.roles import Role
    from broker.bootstrap.served import Served, ServedTerms

    settings = read_settings(data, catalog, log_level)
    chosen = frozenset(_role(text) for text in roles or list(Role))
    lanes = load_lanes(settings.catalog)
    terms = ServedTerms(
        database_url=needed_database_url(database_url, settings),
        data=settings.data,
        roles=chosen,
        drain_seconds=drain_seconds,
        jobs_bus_url=settings.jobs_bus_url,
        payloads_url=settings.payloads_url,
        shares=load_shares(settings.catalog, lanes),
    )
    log_to_stderr(settings.log_level)
    keep_heaps()
    stop = threading.Event()
    with stopping_on_signals(stop), Served(terms, lanes) as served, ExitStack() as doors:
        served.start()
        if Role.API in chosen:
            _open_door(doors, served, settings, (host, port), tuple(name or ()))
        say(f"Ready: {', '.join(sorted(chosen))}. SIGTERM stops it.")
        stop.wait()
        say("Stopping: ending what is under way…")
    say("Stopped.")


def _open_door(
    doors: ExitStack, served: Served, settings: Settings, place: tuple[str, int], names: tuple[str, ...]
) -> None:
    from broker.api.app import LOOPBACK_NAMES, make_app
    from broker.api.desk import Desk
    from broker.api.leases import LeaseCounter
    from broker.api.server import Door, listen, load_or_create_token
    from broker.api.tokens import local_token
    from broker.sdk.http import remember_url

    desk = Desk(served.front, settings.batch_lines_max, _UPLOAD_BYTES_MAX)
    leases = LeaseCounter(served.door, served.ring, served.clock)
    tokens = local_token(load_or_create_token(settings.data))
    app = make_app(desk, tokens, (*LOOPBACK_NAMES, place[0], *names), leases)
    door = Door(app, listen(*place))
    door.start()
    doors.callback(door.stop)
    remember_url(settings.data, door.url)
    say(f"Listening on {door.url}, token in {settings.data / 'token'}")


def _role(text: str) -> Role:
    from broker.bootstrap.roles import Role

    try:
        return Role(text)
    except ValueError:
        raise UsageError(f"{text!r} is no role; there are {', '.join(Role)}") from None
