"""What is known of accelerators and regions, to tell a price from a slip: counts that exist, prices that are possible.

The figures are bounds around list prices, each with its source in `accelerators.csv`; regions are in `regions.csv`.
"""

from __future__ import annotations

import csv
from decimal import Decimal
from functools import cache
from importlib import resources

import msgspec

__all__ = ["Accelerator", "known_accelerators", "known_regions"]


class Accelerator(msgspec.Struct, frozen=True):
    """`counts` that an instance can have; the least and most dollars per hour of one (a TPU's one is a chip)."""

    counts: frozenset[int]
    usd_min: Decimal
    usd_max: Decimal


@cache
def known_accelerators() -> dict[str, Accelerator]:
    """By name, in small letters."""
    return {
        row["accelerator"]: Accelerator(
            _counts(row["counts"]), Decimal(row["usd_per_hour_min"]), Decimal(row["usd_per_hour_max"])
        )
        for row in _rows("accelerators.csv")
    }


@cache
def known_regions() -> frozenset[tuple[str, str]]:
    """Provider and region."""
    return frozenset((row["provider"], row["region"]) for row in _rows("regions.csv"))


def _rows(name: str) -> list[dict[str, str]]:
    text = resources.files("broker.catalog").joinpath(name).read_text()
    return list(csv.DictReader(text.splitlines()))


def _counts(text: str) -> frozenset[int]:
    if "-" in text:
        least, most = map(int, text.split("-"))
        # Slices come in powers of two, and in whole cubes of 64 chips.
        return frozenset(n for n in range(least, most + 1) if n & (n - 1) == 0 or n % 64 == 0)
    return frozenset(map(int, text.split("|")))
