"""Limits on providers' shares of the work, from the table `shares` of the catalog of lanes."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from broker.catalog.lanes import DEMO_CATALOG
from broker.domain.errors import UsageError
from broker.domain.lane import Lane, Provider

__all__ = ["EVERYONE", "load_shares"]

EVERYONE = "*"
"""Stands for every provider that isn't named."""


def load_shares(catalog: str | Path, lanes: Sequence[Lane]) -> dict[str, float]:
    """By provider, or `*` for every other, the part of the work that it may have, above 0 and at most 1.

    `catalog` has been loaded before, and `lanes` are all of its lanes. Raises UsageError with one sentence naming
    file, field, value and limit.
    """
    if catalog == DEMO_CATALOG:
        return {}
    shares: Mapping[str, float] = tomllib.loads(Path(catalog).read_text()).get("shares", {})
    for name, share in shares.items():
        if name != EVERYONE and name not in set(Provider):
            known = ", ".join(Provider)
            raise UsageError(f"{catalog}, shares: {name!r} is no provider; it must be {EVERYONE!r} or one of {known}")
        if not 0 < share <= 1:
            raise UsageError(f"{catalog}, shares.{name} is {share:g}; it must be above 0 and at most 1")
    providers = sorted({str(lane.provider) for lane in lanes})
    together = sum(shares.get(name, shares.get(EVERYONE, 1.0)) for name in providers)
    if together < 1 - 1e-9:
        raise UsageError(
            f"{catalog}, shares: those of {', '.join(providers)} come to {together:g}; together they must reach 1"
        )
    return dict(shares)
