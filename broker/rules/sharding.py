"""How many jobs make a shard."""

from __future__ import annotations

from broker.domain.job import WaitingSpan
from broker.domain.lane import Lane

__all__ = [
    "JOB_OVERHEAD_BYTES",
    "PLACES_PART",
    "body_bytes_max",
    "fits_message",
    "full_shard_body_bytes",
    "jobs_per_shard",
    "own_message_body_bytes",
]

JOB_OVERHEAD_BYTES = 64
"""What a job adds to a message beyond its body: id, salt, deadline and lengths (53 bytes), rounded up."""

PLACES_PART = 4
"""A shard carries the jobs for this part of an engine's places, if that many wait."""

_ENVELOPE_BYTES = 1_024


def jobs_per_shard(lane: Lane, span: WaitingSpan) -> int:
    """The most jobs like those of `span` that one message to `lane` should carry, at least 1.

    Bounded by the lane's count, by its queue's message size, and by about `shard_seconds` of expected work, so that
    little is lost with a worker and late binding stays late; but an engine's places are filled by a few shards, however
    slow it is believed to be, for as many jobs run there at once. A crash's suspects travel alone.
    """
    if span.alone:
        return 1
    by_bytes = (lane.message_bytes_max - _ENVELOPE_BYTES) // (span.body_bytes_max + JOB_OVERHEAD_BYTES)
    by_work = max(round(lane.jobs_per_second * lane.shard_seconds), lane.engine.concurrency // PLACES_PART)
    return max(1, min(lane.shard_jobs_max, by_bytes, by_work))


def full_shard_body_bytes(lane: Lane) -> int:
    """The largest body of which a message to `lane` carries as many as a shard may have; it may be none."""
    return max(0, (lane.message_bytes_max - _ENVELOPE_BYTES) // lane.shard_jobs_max - JOB_OVERHEAD_BYTES)


def own_message_body_bytes(lane: Lane) -> int:
    """The largest body that a message to `lane` can carry itself."""
    return lane.message_bytes_max - _ENVELOPE_BYTES - JOB_OVERHEAD_BYTES


def body_bytes_max(lane: Lane) -> int:
    """The largest body that a message to `lane` can carry, or refer to."""
    return max(lane.message_bytes_max, lane.parked_bytes_max) - _ENVELOPE_BYTES - JOB_OVERHEAD_BYTES


def fits_message(lane: Lane, body_bytes: int) -> bool:
    """Whether a message to `lane` can carry, or refer to, a job of this size."""
    return body_bytes <= body_bytes_max(lane)
