"""`broker throughputs`: how fast models run on accelerators, as published, with source and date."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from broker.cli.options import FormatOption
from broker.cli.printing import OutputFormat, print_rows, say
from broker.domain.errors import UsageError

__all__ = ["app"]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="How fast models run on accelerators, as published.")


@app.callback()
def group() -> None:
    """How fast models run on accelerators, as published, with source and date."""


@app.command("list")
def list_throughputs(
    model: Annotated[str, typer.Option("--model", help="Of models whose name has this in it.")] = "",
    accelerator: Annotated[str, typer.Option("--accelerator", help="Likewise of accelerators.")] = "",
    file: Annotated[
        Path | None, typer.Option("--file", help="Check this file and list it, instead of what ships.")
    ] = None,
    shape: FormatOption = OutputFormat.TABLE,
) -> None:
    """The figures that a lane starts from whose `jobs_per_second` is left out; or those of your own file, checked."""
    from broker.catalog.throughputs import published_throughputs, read_throughputs

    rows = [
        {
            "model": one.model,
            "accelerator": f"{one.accelerator} x {one.accelerator_count}",
            "precision": one.precision,
            "engine": one.engine,
            "concurrency": one.concurrency,
            "input_tokens": one.input_tokens,
            "output_tokens": one.output_tokens,
            "jobs_per_second": f"{one.jobs_per_second:.4g}",
            "output_tokens_per_second": f"{one.output_tokens_per_second:g}",
            "source": one.source,
            "as_of": one.as_of,
            "notes": one.notes,
        }
        for one in (published_throughputs() if file is None else read_throughputs(str(file), _content(file)))
        if model.lower() in one.model.lower() and accelerator.lower() in one.accelerator
    ]
    if not rows and shape is OutputFormat.TABLE:
        say("No such figure.")
        return
    print_rows(rows, shape, keys=4, empty="There are no throughputs.")


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"can't read {file}: {error.strerror}") from None
