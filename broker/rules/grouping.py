"""Which jobs the planner can't tell apart."""

from __future__ import annotations

from hashlib import sha256

import msgspec

from broker.domain.job import Constraints, GroupKey

__all__ = ["bucket_deadline_us", "canonical_constraints", "group_digest"]

_BUCKETS_PER_WINDOW = 16
_BUCKET_US_MIN = 1_000_000


def bucket_deadline_us(deadline_us: int, now_us: int) -> int:
    """The start of the deadline's bucket, so that no job of a group is due before its group is.

    A bucket is a sixteenth of the time left, rounded down to a power of two of seconds, at least one second.
    """
    width = _BUCKET_US_MIN
    while width * 2 * _BUCKETS_PER_WINDOW <= deadline_us - now_us:
        width *= 2
    return deadline_us - deadline_us % width


def canonical_constraints(constraints: Constraints) -> str:
    """The one JSON text of these constraints: sorted keys, sorted names, no needless zeros."""
    fields: dict[str, list[str] | bool | str | int] = {
        name: sorted(found)
        for name in constraints.__struct_fields__
        if isinstance(found := getattr(constraints, name), tuple) and found
    }
    if not constraints.interruptible:
        fields["interruptible"] = False
    if constraints.pictures:
        fields["pictures"] = True
    if constraints.context_tokens:
        fields["context_tokens"] = constraints.context_tokens
    if constraints.max_cost_usd is not None:
        fields["max_cost_usd"] = f"{constraints.max_cost_usd.normalize():f}"
    return msgspec.json.encode(fields, order="sorted").decode()


def group_digest(key: GroupKey) -> bytes:
    """What makes two groups the same group (SHA-256)."""
    return sha256(msgspec.msgpack.encode(key, order="deterministic")).digest()
