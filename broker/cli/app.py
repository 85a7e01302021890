"""Every command, loaded when it is called: a worker must not load a database, nor `broker --help` three SDKs.

What a command's options are made of is imported at the top of its module, what it works with inside its function:
`broker ledger --help` needs no database, and `broker jobs get` no more than HTTP. `tests/unit/test_command_loads.py`
holds what each may load.
"""

from __future__ import annotations

import platform
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["COMMANDS", "app", "load"]

COMMANDS = {
    "up": (
        "up",
        "Run the broker here until Ctrl-C; other terminals submit, wait, cancel and steer it by HTTP.",
    ),
    "batch": ("batch", "Files of jobs, in OpenAI's batch format."),
    "jobs": ("jobs", "Single jobs."),
    "lanes": ("lanes", "The lanes of a running broker."),
    "instances": ("instances", "The instances of a running broker's lanes."),
    "prices": ("prices", "What each lane costs, since when, by which source."),
    "throughputs": ("throughputs", "How fast models run on accelerators, as published."),
    "quote": (
        "quote",
        "What the file's jobs are expected to cost on each lane that may run them, cheapest first, and for how long.",
    ),
    "ledger": ("ledger", "What it cost, how long it took, where it ran."),
    "serve": (
        "serve",
        "Be some of the broker's roles, or all, on PostgreSQL and the lanes' own buses, until SIGTERM.",
    ),
    "worker": (
        "worker",
        "Work one lane, beside its accelerator: no database, only the lane's bus, its key, and the broker's door.",
    ),
    "simulate": (
        "simulate",
        "Replay a trace, or one's own history, on a virtual clock: cost, missed deadlines, waits, waste, shares.",
    ),
    "keys": ("keys", "Signing keys of lanes and producers."),
    "bus": ("bus", "The queues that lanes need on their buses."),
    "db": ("database", "The database's schema."),
}
"""The commands in the order in which help lists them: the module here whose `app` each is, and its line of help.

The line is the first paragraph of the command's own help, so that listing them loads none; a test compares the two.
"""


class _Lazily(TyperGroup):
    """Holds a line of help in place of each command, and loads the command that is called."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 (whatever Typer's own groups take)
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, help=line, short_help=line) for name, (_, line) in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 (types of Typer's own copy of Click)
        name, _line, rest = super().resolve_command(ctx, args)
        return name, load(str(name)), rest


def load(name: str) -> TyperCommand | TyperGroup:
    """The command itself, with its module."""
    module = import_module(f"broker.cli.{COMMANDS[name][0]}")
    module.app.rich_markup_mode = None  # frames around help take as long to load as all else that help needs
    command = typer.main.get_command(module.app)
    assert isinstance(command, TyperCommand | TyperGroup)  # noqa: S101 (typer makes no others)
    command.name = name
    return command


app = typer.Typer(
    cls=_Lazily,
    name="broker",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # as in `load`
    help="Submit an inference job once; it ends at the lowest defensible cost, and the ledger proves it.",
)


def _print_version(show_version: bool) -> None:
    if show_version:
        from importlib.metadata import version

        typer.echo(f"Inference Broker {version('inference-broker')} (Python {platform.python_version()})")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
]


@app.callback()
def group(show_version: VersionOption = False) -> None:
    """Submit an inference job once; it ends at the lowest defensible cost, and the ledger proves it."""
