"""Lanes for a simulation, read from a file."""

from __future__ import annotations

from pathlib import Path

import msgspec

from broker.domain.errors import UsageError
from broker.domain.lane import Market
from broker.rules.placement.lanes import LaneFacts
from broker.simulation.workload import MODEL

__all__ = ["DEFAULT_LANES", "read_lanes"]

DEFAULT_LANES = Path(__file__).with_name("lanes.json")
"""Sixteen lanes of three clouds for a 70B model; where the figures come from is in docs/placement.md."""


class _Row(msgspec.Struct, kw_only=True):
    name: str
    provider: str
    market: Market
    usd_per_hour: float
    requests_per_s: dict[str, float]
    quota: int
    region: str = ""
    precision: str = ""
    start_unbilled_s: float = 0.0
    start_billed_s: float = 0.0
    preemptions_per_hour: float = 0.0


def read_lanes(path: Path) -> tuple[LaneFacts, ...]:
    """A JSON list of lanes with their price, speed by class of work, quota and start-up time."""
    try:
        rows = msgspec.json.decode(path.read_bytes(), type=list[_Row])
    except (OSError, msgspec.DecodeError) as error:
        raise UsageError(f"{path} holds no list of lanes: {error}") from None
    return tuple(
        LaneFacts(
            name=row.name,
            provider=row.provider,
            region=row.region,
            market=row.market,
            precision=row.precision,
            models=(MODEL,),
            price_version=path.name,
            hour_nano_usd=round(row.usd_per_hour * 1e9),
            jobs_per_second=row.requests_per_s,
            quota=row.quota,
            start_unbilled_s=row.start_unbilled_s,
            start_billed_s=row.start_billed_s,
            preemptions_per_hour=row.preemptions_per_hour,
        )
        for row in rows
    )
