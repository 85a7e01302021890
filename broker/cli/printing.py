"""Tables for people, JSON and CSV for programs."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from broker.domain.money import NANO_PER_USD

if TYPE_CHECKING:
    from rich.console import Console

    from broker.health import Rest

__all__ = [
    "OutputFormat",
    "complain",
    "cost_text",
    "dollars",
    "print_json",
    "print_rows",
    "resting_words",
    "say",
    "seconds",
    "tell_what_is_kept",
    "terminal",
    "waste_text",
]

_WIDTH_MAX = 1_000
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


class OutputFormat(StrEnum):
    TABLE = "table"
    JSON = "json"
    CSV = "csv"


_PAIRS = {
    "tokens\nin/out": ("input_tokens", "output_tokens"),
    "queue\np50/p95": ("queue_ms_p50", "queue_ms_p95"),
    "run\np50/p95": ("run_ms_p50", "run_ms_p95"),
}
"""Figures that people read together stand in one column."""

_ONLY_IF_ANY = ("failed", "usage_unknown", "wasted_nano_usd", "unknown_upper_nano_usd")
"""Columns left out where they hold nothing; `succeeded` is too, where it says the same as `jobs`."""


@cache
def terminal() -> Console:
    """For what moves: progress and status. Rich takes a while to load, so lines go without it."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def say(text: str = "") -> None:
    """A line for a person, as it is: it may be a model's answer."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def tell_what_is_kept(set_aside: Sequence[tuple[Path, Path]]) -> None:
    """Of files that gave way to newer ones."""
    for path, aside in set_aside:
        say(f"{path.name} of an earlier run is kept as {aside}")


def complain(sentence: str) -> None:
    """An error, on standard error."""
    from rich.console import Console

    errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
    errors.print(f"error: {sentence}", markup=False, style="bold red")


def print_json(value: object) -> None:
    """Anything, for programs."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")


def print_rows(
    rows: Sequence[Mapping[str, Any]],
    shape: OutputFormat,
    *,
    title: str = "",
    keys: int = 1,
    empty: str = "The ledger has nothing on that.",
) -> None:
    """Rows with the same fields; the first `keys` of them are names, the others figures. `empty` is for people."""
    match shape:
        case OutputFormat.JSON:
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(rows)).decode() + "\n")
        case OutputFormat.CSV:
            _write_csv(rows)
        case OutputFormat.TABLE:
            _print_table(rows, title, keys, empty)


def _write_csv(rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow([_safe_cell(value) for value in row.values()])


def _safe_cell(value: Any) -> Any:  # noqa: ANN401 (a value of any column)
    """A spreadsheet runs text that begins like a formula; a quote keeps it text."""
    if isinstance(value, str) and value.startswith(_FORMULA_STARTS):
        return f"'{value}"
    return value


def _print_table(rows: Sequence[Mapping[str, Any]], title: str, keys: int, empty: str) -> None:
    if not rows:
        say(empty)
        return
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    shown = _columns_for_people(rows)
    table = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(shown[0]):
        table.add_column(name, justify="left" if place < keys else "right", no_wrap=True)
    for row in shown:
        table.add_row(*row.values())
    # A figure cut short is worse than a line that wraps.
    wide = Console(width=_WIDTH_MAX)
    needed = Measurement.get(wide, wide.options, table).maximum
    Console(highlight=False, width=max(needed, terminal().width)).print(table)


def _columns_for_people(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    empty = {name for name in _ONLY_IF_ANY if not any(row.get(name) for row in rows)}
    if all(row.get("succeeded") == row.get("jobs") for row in rows):
        empty.add("succeeded")
    paired = {name: title for title, names in _PAIRS.items() for name in names if name in rows[0]}
    found = []
    for row in rows:
        cells: dict[str, str] = {}
        for name, value in row.items():
            if name in paired:
                title = paired[name]
                cells[title] = f"{cells[title]}/{_shown(name, value)}" if title in cells else _shown(name, value)
            elif name not in empty:
                cells[name.removesuffix("_nano_usd").replace("_", " ")] = (
                    "unknown" if _is_unknown(name, row) else _shown(name, value)
                )
        found.append(cells)
    return found


def _is_unknown(name: str, row: Mapping[str, Any]) -> bool:
    """Whether a sum that is nothing is so because nobody knows it."""
    if row[name] or not row.get("unknown_upper_nano_usd"):
        return False
    return name == "cost_nano_usd" or (name == "wasted_nano_usd" and row.get("attempts") != row.get("succeeded"))


def _shown(name: str, value: Any) -> str:  # noqa: ANN401 (a value of any column)
    if value is None:
        return "-"
    if name.endswith("_nano_usd"):
        return dollars(value)
    if "_ms_" in name:
        return seconds(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def dollars(nano_usd: int) -> str:
    """Dollars to six decimals, enough to see a single job; JSON and CSV carry every nano-dollar."""
    return f"${nano_usd / NANO_PER_USD:,.6f}"


def cost_text(known_nano_usd: int, unknown_nano_usd: int, text_of: Callable[[int], str] = dollars) -> str:
    """A cost of which a part may be unknown, with its bound: what nobody knows is never shown as nothing."""
    if not unknown_nano_usd:
        return text_of(known_nano_usd)
    if not known_nano_usd:
        return f"unknown, at most {text_of(unknown_nano_usd)}"
    return f"{text_of(known_nano_usd)} and an unknown part of at most {text_of(unknown_nano_usd)}"


def waste_text(wasted_nano_usd: int, unknown_nano_usd: int, text_of: Callable[[int], str] = dollars) -> str:
    """What follows a cost: how much of it was wasted, of which there may be more among what is unknown."""
    if not unknown_nano_usd:
        return f", of which wasted {text_of(wasted_nano_usd)}"
    return f", of which wasted at least {text_of(wasted_nano_usd)}" if wasted_nano_usd else ""


def seconds(milliseconds: int) -> str:
    """A duration: milliseconds below a second, else seconds to one decimal."""
    return f"{milliseconds / 1000:,.1f}s" if milliseconds >= 1000 else f"{milliseconds}ms"


def resting_words(lane: str, rest: Rest) -> str:
    """A lane that gets no work, why, since when and for how long."""
    return f"{lane} ({rest.code} for {rest.away_s:.0f} s, next try in {rest.left_s:.0f} s)"
