"""`broker serve`: the broker's roles as processes of their own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Annotated

import typer

from broker.cli.memory import keep_heaps, leave_modules_out_of_garbage_collection
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

if TYPE_CHECKING:
    from broker.bootstrap.roles import Role

__all__ = ["app"]

app = typer.Typer(add_completion=False)


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
    from broker.bootstrap.door import DoorTerms
    from broker.bootstrap.roles import Role
    from broker.bootstrap.schema_wait import wait_for_schema
    from broker.bootstrap.served import Served, ServedTerms
    from broker.catalog.lanes import load_lanes
    from broker.catalog.policy import load_policy
    from broker.logs import log_to_stderr

    leave_modules_out_of_garbage_collection()
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
        policy=load_policy(settings.catalog, lanes),
        door=DoorTerms(host=host, port=port, names=tuple(name or ()), batch_lines_max=settings.batch_lines_max),
    )
    log_to_stderr(settings.log_level)
    keep_heaps()
    stop = threading.Event()
    with stopping_on_signals(stop):
        if wait_for_schema(terms.database_url, stop):
            with Served(terms, lanes, on_death=stop.set) as served:
                served.start()
                if served.url:
                    say(f"Listening on {served.url}, token in {settings.data / 'token'}")
                say(f"Ready: {', '.join(sorted(chosen))}. SIGTERM stops it.")
                stop.wait()
                say("Stopping: ending what is under way…")
                served.check()
    say("Stopped.")


def _role(text: str) -> Role:
    from broker.bootstrap.roles import Role

    try:
        return Role(text)
    except ValueError:
        raise UsageError(f"{text!r} is no role; there are {', '.join(Role)}") from None
