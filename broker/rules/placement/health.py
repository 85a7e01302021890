"""A lane's health: faults send it to rest, longer each time; then it comes back by degrees.

A state is a value; what happened and the time give the next one.
"""

from __future__ import annotations

import msgspec

__all__ = ["Health", "faulted", "succeeded", "trust"]

_REST_S = 60.0
_REST_MAX_S = 960.0
_RETURN_S = 480.0
_FIRST_TRUST = 0.25


class Health(msgspec.Struct, frozen=True):
    """`faults` in a row; `rests_until_s` is when the last rest ends, 0 for a lane that never failed."""

    faults: int = 0
    rests_until_s: float = 0.0
    well: bool = True


def faulted(health: Health, now_s: float) -> Health:
    """After a fault that speaks against the lane. While it rests, more of them are the same fault."""
    if now_s < health.rests_until_s:
        return health
    rest_s = min(_REST_S * 2**health.faults, _REST_MAX_S)
    return Health(health.faults + 1, now_s + rest_s, False)


def succeeded(health: Health, now_s: float) -> Health:
    """After work that the lane did. A full return forgets the faults."""
    if health.well or now_s < health.rests_until_s + _RETURN_S:
        return health
    return Health()


def trust(health: Health, now_s: float) -> float:
    """The part of the lane's quota to use: nothing while it rests, then a quarter, rising to all of it."""
    if health.well:
        return 1.0
    if now_s < health.rests_until_s:
        return 0.0
    back = (now_s - health.rests_until_s) / _RETURN_S
    return min(1.0, _FIRST_TRUST + (1.0 - _FIRST_TRUST) * back)
