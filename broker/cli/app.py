"""Every command, loaded when it is called: a worker must not load a database, nor `broker --help` three SDKs."""

from __future__ import annotations

from importlib import import_module

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["app"]

_MODULES = {
    "up": "up",
    "batch": "batch",
    "jobs": "jobs",
    "lanes": "lanes",
    "instances": "instances",
    "prices": "prices",
    "throughputs": "throughputs",
    "quote": "quote",
    "ledger": "ledger",
    "serve": "serve",
    "worker": "worker",
    "simulate": "simulate",
    "keys": "keys",
    "bus": "bus",
    "db": "database",
}
"""The commands in the order in which help lists them, each with its module here, whose `app` it is."""


class _Lazily(TyperGroup):
    def list_commands(self, _ctx: object) -> list[str]:
        return list(_MODULES)

    def get_command(self, _ctx: object, cmd_name: str) -> TyperCommand | TyperGroup | None:
        if cmd_name not in _MODULES:
            return None
        module = import_module(f"broker.cli.{_MODULES[cmd_name]}")
        command = typer.main.get_command(module.app)
        assert isinstance(command, TyperCommand | TyperGroup)  # noqa: S101 (typer makes no others)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=_Lazily,
    name="broker",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Submit an inference job once; it ends at the lowest defensible cost, and the ledger proves it.",
)


@app.callback()
def group() -> None:
    """Submit an inference job once; it ends at the lowest defensible cost, and the ledger proves it."""
