"""Options that several commands share, and the texts they are read from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from broker.cli.printing import OutputFormat
from broker.domain.errors import UsageError
from broker.settings import Settings, load_settings

if TYPE_CHECKING:
    from broker.domain.job import Constraints
    from broker.sdk.http import Client

__all__ = [
    "BatchFileArgument",
    "CatalogOption",
    "DataOption",
    "DatabaseOption",
    "FormatOption",
    "LogLevelOption",
    "OverwriteOption",
    "RequireOption",
    "UrlOption",
    "needed_database_url",
    "open_client",
    "parse_window",
    "read_constraints",
    "read_settings",
]

DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder of the database and keys [BROKER_DATA, or broker-data].")
]
CatalogOption = Annotated[
    str | None,
    typer.Option("--catalog", help="TOML file of lanes, or `demo` for the one that ships [BROKER_CATALOG, or demo]."),
]
DatabaseOption = Annotated[
    str | None, typer.Option("--database-url", help="postgresql://… [BROKER_DATABASE_URL]", show_default=False)
]
LogLevelOption = Annotated[str | None, typer.Option("--log-level", help="debug, info, warning or error.")]
BatchFileArgument = Annotated[
    Path,
    typer.Argument(
        help="JSONL in OpenAI's batch format: custom_id, method, url, body; - for standard input, or packed with gzip."
    ),
]
OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace whatever the output files hold; else an earlier run's replies are kept under a number.",
    ),
]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="Where the broker listens [BROKER_URL, or as noted in the data folder].")
]
RequireOption = Annotated[
    list[str] | None,
    typer.Option(
        "--require",
        help="Where it may run: region=NAME, region!=NAME, provider=, provider!=, market=, precision=,"
        " interruptible=no, max-cost=USD a job; names with commas; may be given again.",
    ),
]
FormatOption = Annotated[OutputFormat, typer.Option("--format", help="A table for people, or JSON or CSV.")]


def read_settings(data: Path | None = None, catalog: str | None = None, log_level: str | None = None) -> Settings:
    """The environment's settings under the options given."""
    environment = dict(os.environ) if log_level is None else {**os.environ, "BROKER_LOG_LEVEL": log_level}
    settings = load_settings(environment)
    return msgspec.structs.replace(settings, data=data or settings.data, catalog=catalog or settings.catalog)


def open_client(data: Path | None, url: str | None) -> Client:
    """The client of the broker named by the options, or by BROKER_URL and BROKER_TOKEN, or by its data folder."""
    from broker.sdk.http import Client

    settings = read_settings(data)
    return Client.of_folder(settings.data, url or settings.url, settings.token)


def parse_window(text: str) -> int:
    """Seconds of a window such as 90s, 15m, 1h or 2d."""
    from broker.rules.windows import window_seconds_of

    try:
        return window_seconds_of(text)
    except ValueError as error:
        raise UsageError(f"--window is {error}") from None


def read_constraints(lanes: str | None, require: list[str] | None) -> Constraints | None:
    """What --lanes and --require demand together; None where they demand nothing."""
    from broker.rules.demands import constraints_of

    texts = [*(require or []), *([f"lane={lanes}"] if lanes is not None else [])]
    try:
        return constraints_of(texts) if texts else None
    except ValueError as error:
        raise UsageError(f"--require is {error}") from None


def needed_database_url(given: str | None, settings: Settings) -> str:
    """The PostgreSQL database to work on. Raises UsageError where none is named."""
    found = given or settings.database_url
    if not found:
        raise UsageError(
            "name a PostgreSQL database with --database-url, or BROKER_DATABASE_URL; `broker up` needs none"
        )
    return found
