"""Hard constraints as filters: which lanes may serve given terms, and which filter removed each of the others.

Lanes are bits of a whole number, so that thousands of terms over scores of lanes cost little.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from broker.domain.lane import Market
from broker.rules.decisions import Removed
from broker.rules.placement.lanes import LaneFacts, Supply
from broker.rules.placement.work import Demands, Terms

__all__ = ["Eligibility", "bits", "eligible", "job_cost_nano_usd"]

_SECONDS_PER_HOUR = 3_600


class Eligibility(msgspec.Struct, frozen=True):
    """The answer for one set of terms. `mask` has the bit of each lane that may serve, in the lanes' order.

    A lane is removed once, by the first filter that did.
    """

    mask: int
    removed: tuple[Removed, ...]


def bits(mask: int) -> Iterator[int]:
    """The indices of the bits that are set, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def job_cost_nano_usd(lane: LaneFacts, kind: str) -> int:
    """What one job of this kind costs on a busy instance, or at the job's price on a per-token lane."""
    if lane.supply is Supply.PER_TOKEN:
        return lane.job_nano_usd[kind]
    return round(lane.hour_nano_usd / (lane.jobs_per_second[kind] * _SECONDS_PER_HOUR))


def eligible(
    terms: Terms,
    lanes: Sequence[LaneFacts],
    known: dict[tuple[str, int], tuple[Removed, ...]] | None = None,
) -> Eligibility:
    """Which of the lanes may serve these terms. `known` saves saying the same of the same lanes for other terms."""
    mask = (1 << len(lanes)) - 1
    removed: list[Removed] = []
    for reason, passes in _filters(terms):
        failing = sum(1 << index for index in bits(mask) if not passes(lanes[index]))
        if failing:
            gone = known.get((reason, failing)) if known is not None else None
            if gone is None:
                gone = tuple(Removed(lanes[index].name, reason) for index in bits(failing))
                if known is not None:
                    known[reason, failing] = gone
            removed += gone
            mask &= ~failing
    return Eligibility(mask, tuple(removed))


def _filters(terms: Terms) -> Iterator[tuple[str, Callable[[LaneFacts], bool]]]:
    """The filters that these terms ask for, each with its reason in words."""
    demands = terms.demands
    yield f"model: does not run {terms.model}", lambda lane: terms.model in lane.models
    yield f"kind: no speed known for {terms.kind}", lambda lane: lane.jobs_per_second.get(terms.kind, 0.0) > 0
    if demands.lanes:
        yield f"lanes: not among {_words(demands.lanes)}", lambda lane: lane.name in demands.lanes
    if demands.providers:
        yield f"providers: not among {_words(demands.providers)}", lambda lane: lane.provider in demands.providers
    if demands.denied_providers:
        denied_providers = demands.denied_providers
        yield f"providers: {_words(denied_providers)} denied", lambda lane: lane.provider not in denied_providers
    if demands.regions:
        yield f"regions: not among {_words(demands.regions)}", lambda lane: lane.region in demands.regions
    if demands.denied_regions:
        denied_regions = demands.denied_regions
        yield f"regions: {_words(denied_regions)} denied", lambda lane: lane.region not in denied_regions
    if demands.markets:
        yield f"markets: not among {_words(demands.markets)}", lambda lane: lane.market in demands.markets
    yield from _engine_filters(demands)
    if not demands.interruptible:
        yield "interruptible: may be taken away", lambda lane: lane.market is not Market.SPOT
    if (limit := demands.job_cost_max_nano_usd) is not None:
        yield f"cost: above {limit} nano-USD a job", lambda lane: job_cost_nano_usd(lane, terms.kind) <= limit


def _engine_filters(demands: Demands) -> Iterator[tuple[str, Callable[[LaneFacts], bool]]]:
    """Those of what an engine can do."""
    if demands.precisions:
        yield f"precision: not among {_words(demands.precisions)}", lambda lane: lane.precision in demands.precisions
    if demands.pictures:
        yield "pictures: reads none", lambda lane: lane.pictures
    if least := demands.context_tokens_min:
        yield (
            f"context_tokens: fewer than {least}",
            lambda lane: not lane.context_tokens or lane.context_tokens >= least,
        )


def _words(names: tuple[str, ...]) -> str:
    return ", ".join(names)
