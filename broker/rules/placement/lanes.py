"""What placement knows of a lane: facts that change with the catalog, and what is true of it now."""

from __future__ import annotations

import msgspec

from broker.domain.lane import Market, Supply

__all__ = ["LaneFacts", "LaneNow", "Supply"]


class LaneFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A lane as placement sees it. Speeds are jobs per second of one whole instance, by kind of work.

    A kind is jobs of one model and of about the same size; a kind that isn't in `jobs_per_second` can't run here.
    `expected_nano_usd`: what a job is expected to cost at the load that the lane had lately, by kind, where known.
    `context_tokens` is 0 where nobody says.
    """

    name: str
    provider: str
    region: str = ""
    market: Market = Market.ON_DEMAND
    supply: Supply = Supply.ELASTIC
    precision: str = ""
    pictures: bool = True
    context_tokens: int = 0
    models: tuple[str, ...] = ()
    price_version: str
    hour_nano_usd: int = 0
    job_nano_usd: dict[str, int] = {}
    expected_nano_usd: dict[str, int] = {}
    jobs_per_second: dict[str, float]
    quota: int
    start_unbilled_s: float = 0.0
    start_billed_s: float = 0.0
    preemptions_per_hour: float = 0.0

    @property
    def start_s(self) -> float:
        return self.start_unbilled_s + self.start_billed_s


class LaneNow(msgspec.Struct, frozen=True):
    """What is true of a lane at this moment. `trust` is the part of its quota that its health allows, 0 to 1."""

    ready: int = 0
    starting: int = 0
    trust: float = 1.0

    @property
    def live(self) -> int:
        return self.ready + self.starting
