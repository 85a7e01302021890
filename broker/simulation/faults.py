"""What goes wrong in a simulation, and when."""

from __future__ import annotations

import msgspec

from broker.domain.lane import Market
from broker.rules.placement.lanes import LaneFacts

__all__ = ["Outage", "is_away"]

DRAIN_S = 86_400


class Outage(msgspec.Struct, frozen=True, kw_only=True):
    """Lanes of a provider, or of a market, or of both, are away from `from_s` until `to_s`."""

    provider: str | None = None
    market: Market | None = None
    from_s: float
    to_s: float

    def hits(self, lane: LaneFacts) -> bool:
        return self.provider in (None, lane.provider) and self.market in (None, lane.market)


def is_away(lane: LaneFacts, outages: tuple[Outage, ...], now_s: float) -> bool:
    """Whether the lane has no instances now, and can't start any."""
    return any(one.hits(lane) and one.from_s <= now_s < one.to_s for one in outages)
