"""What jobs can have cost whose worker fell silent, and so said nothing of it."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from broker.database import jobs
from broker.database.shards import ShardRecord
from broker.domain.lane import Lane, PriceMeter
from broker.rules.bounds import Asked, TokenRatios, asked_of, tokens_upper
from broker.rules.pricing import accelerator_cost_nano_usd, cost_nano_usd

__all__ = ["upper_costs"]

_BYTES_AT_ONCE = 4_000_000


def upper_costs(
    connection: Connection, lane: Lane, record: ShardRecord, indices: Sequence[int], now_us: int
) -> dict[int, int]:
    """The most that these jobs of the shard cost, by index, in nano-USD. `lane` has the price of the shard's time."""
    if not indices or record.claimed_us is None:
        return dict.fromkeys(indices, 0)
    if lane.price.meter is PriceMeter.TOKEN:
        return _by_token(connection, lane, record, indices)
    # At most the whole time from claim to lease end was theirs: its cost, divided without remainder.
    until_us = min(now_us, record.lease_until_us or now_us)
    whole = accelerator_cost_nano_usd(lane.price, max(0, until_us - record.claimed_us))
    share, extra = divmod(whole, len(indices))
    return {index: share + (place < extra) for place, index in enumerate(indices)}


def _by_token(connection: Connection, lane: Lane, record: ShardRecord, indices: Sequence[int]) -> dict[int, int]:
    """By what each request allows; its worker knew how much text makes a token there, and nobody here does."""
    largest = max(span.body_bytes_max for span in record.spans)
    at_once = max(1, _BYTES_AT_ONCE // max(1, largest))
    found: dict[int, int] = {}
    for start in range(0, len(indices), at_once):
        some = indices[start : start + at_once]
        bodies = jobs.load_bodies(connection, [record.job_id_at(index) for index in some])
        for index in some:
            body = bodies.get(record.job_id_at(index))
            asked = Asked(text_bytes=largest) if body is None else asked_of(record.endpoint, body)
            found[index] = cost_nano_usd(lane.price, tokens_upper(asked, TokenRatios(), lane.engine.context_tokens))
    return found
