"""What jobs of a model are expected to cost on each lane that may run them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from broker.domain.job import Constraints, GroupKey
from broker.domain.lane import Lane
from broker.rules.grouping import canonical_constraints
from broker.rules.placement.facts import expected_cost_nano_usd
from broker.rules.planning import Speeds, plan_group

__all__ = ["ModelQuote", "quote_model"]


class ModelQuote(msgspec.Struct, frozen=True, kw_only=True):
    """For so many jobs on one instance of a lane; `is_learned` where its speed was, rather than believed."""

    model: str
    lane: str
    jobs: int
    job_cost_nano_usd: int
    cost_nano_usd: int
    seconds: float
    price_version: str
    is_learned: bool


def quote_model(
    model: str, jobs: int, constraints: Constraints, lanes: Sequence[Lane], speeds: Speeds
) -> list[ModelQuote]:
    """The lanes that may run it, cheapest first."""
    by_name = {str(lane.name): lane for lane in lanes}
    plan = plan_group(GroupKey("", "", model, canonical_constraints(constraints), 0), lanes)
    quotes = []
    for candidate in plan.candidates:
        lane, speed = by_name[candidate.lane], speeds.get(candidate.lane, {}).get(model)
        cost = expected_cost_nano_usd(lane, speed)
        job_s = speed.job_s if speed else 1.0 / (lane.jobs_per_second * lane.slots)
        quotes.append(
            ModelQuote(
                model=model,
                lane=candidate.lane,
                jobs=jobs,
                job_cost_nano_usd=cost,
                cost_nano_usd=cost * jobs,
                seconds=job_s * jobs,
                price_version=candidate.price_version,
                is_learned=speed is not None and speed.jobs > 0,
            )
        )
    return sorted(quotes, key=lambda one: (one.cost_nano_usd, one.lane))
