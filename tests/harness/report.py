"""What a campaign found: one table, and what must not be."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import msgspec

from tests.bench.table import print_table

__all__ = ["Report", "say"]


class Report(msgspec.Struct, kw_only=True):
    """`faults` is empty where everything held."""

    title: str
    figures: dict[str, str] = {}
    faults: list[str] = []

    def add(self, figures: Mapping[str, object]) -> None:
        for name, figure in figures.items():
            self.figures[name] = f"{figure:,}" if isinstance(figure, int) else str(figure)

    def at_most(self, name: str, seconds: float, limit: float) -> None:
        """A time that has a limit."""
        self.figures[name] = f"{seconds:.1f} s"
        if not 0 <= seconds <= limit:
            self.faults.append(f"{name}: {seconds:.1f} s, and at most {limit:g} s is allowed")

    def at_least(self, name: str, count: int, limit: int) -> None:
        """A count without which the campaign showed nothing."""
        self.figures[name] = f"{count:,}"
        if count < limit:
            self.faults.append(f"{name}: {count:,}, and at least {limit:,} are needed to show anything")

    def print(self) -> None:
        rows = [(name, figure) for name, figure in self.figures.items()]
        print_table(self.title, ("", "figure"), rows)
        for fault in self.faults:
            say(f"FAULT {fault}")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
