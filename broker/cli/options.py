"""Options that several commands share, and the texts they are read from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from broker.cli.printing import OutputFormat
from broker.domain.errors import UsageError
from broker.rules.windows import window_seconds_of
from broker.settings import Settings, load_settings

__all__ = ["CatalogOption", "DataOption", "FormatOption", "parse_window", "read_settings"]

DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder of the database and keys [BROKER_DATA, or broker-data].")
]
CatalogOption = Annotated[
    str | None,
    typer.Option("--catalog", help="TOML file of lanes, or `demo` for the one that ships [BROKER_CATALOG, or demo]."),
]
FormatOption = Annotated[OutputFormat, typer.Option("--format", help="A table for people, or JSON or CSV.")]


def read_settings(data: Path | None = None, catalog: str | None = None) -> Settings:
    """The environment's settings under the options given."""
    settings = load_settings(os.environ)
    return Settings(
        data=data or settings.data,
        catalog=catalog or settings.catalog,
        batch_lines_max=settings.batch_lines_max,
        log_level=settings.log_level,
    )


def parse_window(text: str) -> int:
    """Seconds of a window such as 90s, 15m, 1h or 2d."""
    try:
        return window_seconds_of(text)
    except ValueError as error:
        raise UsageError(f"--window is {error}") from None
