"""What goes wrong in a simulation, and when."""

from __future__ import annotations

import re

import msgspec

from broker.domain.errors import UsageError
from broker.domain.lane import Market
from broker.rules.placement.lanes import LaneFacts
from broker.simulation.workload import Workload

__all__ = ["DRAIN_S", "Outage", "drain_of", "is_away", "named_faults", "parse_outage"]

DRAIN_S = 86_400
"""How long after the last arrival a run may go on."""

_HOUR_S = 3_600.0
_OUTAGE = re.compile(r"(?P<provider>[^@]+)@(?P<first>\d+(\.\d+)?)-(?P<last>\d+(\.\d+)?)")


class Outage(msgspec.Struct, frozen=True, kw_only=True):
    """Lanes of a provider, or of a market, or of both, are away from `from_s` until `to_s`."""

    provider: str | None = None
    market: Market | None = None
    from_s: float
    to_s: float
    is_drain: bool = False

    def hits(self, lane: LaneFacts) -> bool:
        return self.provider in (None, lane.provider) and self.market in (None, lane.market)


def is_away(lane: LaneFacts, outages: tuple[Outage, ...], now_s: float) -> bool:
    """Whether the lane has no instances now, and can't start any."""
    return any(one.hits(lane) and one.from_s <= now_s < one.to_s for one in outages)


def drain_of(workload: Workload) -> Outage:
    """Spot lanes go with the last arrival: else an empty day of cheap lanes would flatter whoever defers work."""
    ended_s = float(workload.arrivals_end_s)
    return Outage(market=Market.SPOT, from_s=ended_s, to_s=ended_s + DRAIN_S, is_drain=True)


def named_faults(name: str, workload: Workload) -> tuple[Outage, ...]:
    """The referee's cases: base, spot_gone (Google's spot, hours 14 to 16), provider_down (Oracle, 20 to 24)."""
    spot_gone = Outage(provider="google-tpu", market=Market.SPOT, from_s=14 * _HOUR_S, to_s=16 * _HOUR_S)
    provider_down = Outage(provider="oracle-gpu", from_s=20 * _HOUR_S, to_s=24 * _HOUR_S)
    cases = {"base": (), "spot_gone": (spot_gone,), "provider_down": (provider_down,)}
    return (*cases[name], drain_of(workload))


def parse_outage(text: str) -> Outage:
    """An outage such as `oracle-gpu@20-24`: a provider, and the hours from which and until which it is away."""
    found = _OUTAGE.fullmatch(text)
    if found is None or float(found["last"]) <= float(found["first"]):
        raise UsageError(f"--outage {text!r} is not of the form PROVIDER@FROM-TO, in hours, such as oracle-gpu@20-24")
    first_s, last_s = float(found["first"]) * _HOUR_S, float(found["last"]) * _HOUR_S
    return Outage(provider=found["provider"], from_s=first_s, to_s=last_s)
