"""Which jobs of a batch wait together: those that the same lanes carry, so that a long one bars none to the others."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import msgspec

from broker.domain.lane import Lane
from broker.rules.placement.facts import demands_of, facts_of
from broker.rules.placement.filters import bits, eligible
from broker.rules.placement.work import Terms
from broker.rules.sharding import body_bytes_max, full_shard_body_bytes, own_message_body_bytes

__all__ = ["allowed_lanes", "size_class", "size_limits"]


def size_limits(model: str, constraints: str, lanes: Sequence[Lane]) -> tuple[int, ...]:
    """The sizes of a body, ascending, up to which the lanes that may run it carry it alike; the last is the most.

    For each lane: that of which a message takes a full shard, the most that a message takes, and the most that it takes
    or refers to. Empty where no lane is allowed.
    """
    measures = (full_shard_body_bytes, own_message_body_bytes, body_bytes_max)
    return tuple(sorted({measure(lane) for lane in allowed_lanes(model, constraints, lanes) for measure in measures}))


def allowed_lanes(model: str, constraints: str, lanes: Sequence[Lane]) -> list[Lane]:
    """Those that may run the model's jobs. A limit on a job's cost is left out: prices change."""
    demands = msgspec.structs.replace(demands_of(constraints), job_cost_max_nano_usd=None)
    found = eligible(Terms(model, model, demands), [facts_of(lane) for lane in lanes])
    return [lanes[index] for index in bits(found.mask)]


def size_class(body_bytes: int, limits: Sequence[int]) -> int:
    """Bodies of one class are carried by the same lanes."""
    return bisect_left(limits, body_bytes)
