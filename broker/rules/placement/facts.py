"""From what the catalog, the price book and the ledger say of lanes and groups to what placement reckons with."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import ceil

import msgspec

from broker.domain.job import Constraints, GroupKey
from broker.domain.lane import Lane, PriceMeter
from broker.domain.money import nano_from_usd
from broker.rules.placement.lanes import LaneFacts
from broker.rules.placement.learning import Speed
from broker.rules.placement.work import Demands, Terms
from broker.rules.pricing import expected_job_cost_nano_usd, token_cost_nano_usd

__all__ = ["demands_of", "expected_cost_nano_usd", "facts_of", "instances_of", "terms_of"]

_PICO_PER_NANO = 1_000


def facts_of(lane: Lane, speeds: Mapping[str, Speed] | None = None) -> LaneFacts:
    """A lane at its price in force, with the speeds learned by model; without them, as the catalog believes."""
    learned = speeds or {}
    believed = lane.jobs_per_second * lane.slots
    by_model = {model: 1.0 / learned[model].job_s if model in learned else believed for model in lane.engine.models}
    expected = {}
    if speeds is not None or lane.price.meter is PriceMeter.TOKEN:
        expected = {model: expected_cost_nano_usd(lane, learned.get(model)) for model in lane.engine.models}
    return LaneFacts(
        name=str(lane.name),
        provider=lane.provider,
        region=lane.region,
        market=lane.market,
        supply=lane.supply,
        precision=lane.precision,
        models=lane.engine.models,
        pictures=lane.engine.pictures,
        context_tokens=lane.engine.context_tokens,
        price_version=lane.price.version,
        hour_nano_usd=lane.price.instance_hour_pico_usd // _PICO_PER_NANO,
        job_nano_usd=expected if lane.price.meter is PriceMeter.TOKEN else {},
        expected_nano_usd=expected,
        jobs_per_second=by_model,
        quota=lane.quota,
        start_unbilled_s=lane.start_unbilled_seconds,
        start_billed_s=lane.start_billed_seconds,
        preemptions_per_hour=lane.preemptions_per_hour,
    )


def expected_cost_nano_usd(lane: Lane, speed: Speed | None) -> int:
    """What a job is expected to cost here, at the load that the lane had lately; at least 1."""
    if speed is None or speed.jobs == 0:
        return max(1, expected_job_cost_nano_usd(lane.price, lane.jobs_per_second * lane.slots))
    if lane.price.meter is PriceMeter.TOKEN and not (speed.input_tokens or speed.output_tokens):
        return max(1, expected_job_cost_nano_usd(lane.price, lane.jobs_per_second * lane.slots))  # a typical job's
    if lane.price.meter is PriceMeter.TOKEN:
        return max(1, token_cost_nano_usd(lane.price, speed.input_tokens, speed.output_tokens))
    return max(1, expected_job_cost_nano_usd(lane.price, 1.0 / max(speed.used_s, 1e-6)))


def instances_of(lane: Lane, slots: int) -> int:
    """How many instances have so many slots."""
    return ceil(slots / lane.slots)


def terms_of(key: GroupKey) -> Terms:
    """What decides which lanes may serve a group. A kind of work is a model."""
    return Terms(key.model, key.model, demands_of(key.constraints))


@lru_cache(maxsize=4_096)
def demands_of(constraints: str) -> Demands:
    """The demands in a canonical text of constraints."""
    found = msgspec.json.decode(constraints, type=Constraints)
    limit = None if found.max_cost_usd is None else int(nano_from_usd(str(found.max_cost_usd)))
    return Demands(
        lanes=found.lanes,
        providers=found.providers,
        denied_providers=found.denied_providers,
        regions=found.regions,
        denied_regions=found.denied_regions,
        markets=found.markets,
        precisions=found.precisions,
        interruptible=found.interruptible,
        job_cost_max_nano_usd=limit,
        pictures=found.pictures,
        context_tokens_min=found.context_tokens,
    )
