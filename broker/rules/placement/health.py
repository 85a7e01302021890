"""A lane's health: faults send it to rest, longer each time; then it comes back by degrees.

A state is a value; what happened and the time give the next one. How long it takes follows from how long the lane was
away, so that a fault of a moment is over in a moment.
"""

from __future__ import annotations

import msgspec

__all__ = ["LIVE", "SLOW", "WELL", "Health", "HealthTerms", "faulted", "is_resting", "succeeded", "trust"]


class HealthTerms(msgspec.Struct, frozen=True):
    """How long a lane rests after its first fault, and at most; what part of it is used then.

    From its first success on that part rises to all of it, in `return_part` of the time for which it was away, at
    most `return_max_s`.
    """

    rest_s: float
    rest_max_s: float
    return_part: float
    return_max_s: float
    first_trust: float = 0.25


LIVE = HealthTerms(rest_s=1.0, rest_max_s=60.0, return_part=0.5, return_max_s=120.0)
"""Where each shard that fails or succeeds is told at once."""

SLOW = HealthTerms(rest_s=60.0, rest_max_s=960.0, return_part=1.0, return_max_s=480.0)
"""Where somebody looks once a minute, as in the simulation."""


class Health(msgspec.Struct, frozen=True):
    """`rest_s` is how long the last rest was, 0 for a lane that is well; it ends at `rests_until_s`.

    `since_s`: the first fault of those in a row; `back_s`: the first success after the last one.
    """

    rest_s: float = 0.0
    rests_until_s: float = 0.0
    since_s: float = 0.0
    back_s: float | None = None


WELL = Health()


def faulted(health: Health, now_s: float, terms: HealthTerms) -> Health:
    """After a fault that speaks against the lane. While it rests, more of them are the same fault."""
    if is_resting(health, now_s):
        return health
    before = WELL if trust(health, now_s, terms) >= 1.0 else health
    rest_s = min(max(2.0 * before.rest_s, terms.rest_s), terms.rest_max_s)
    return Health(rest_s, now_s + rest_s, before.since_s if before.rest_s else now_s)


def succeeded(health: Health, now_s: float, terms: HealthTerms) -> Health:
    """After work that the lane did: it ends the rest and begins the return. A full return forgets the faults."""
    if health.rest_s == 0.0 or trust(health, now_s, terms) >= 1.0:
        return WELL
    if health.back_s is not None:
        return health
    return msgspec.structs.replace(health, rests_until_s=min(health.rests_until_s, now_s), back_s=now_s)


def is_resting(health: Health, now_s: float) -> bool:
    """Whether it gets nothing now."""
    return now_s < health.rests_until_s


def trust(health: Health, now_s: float, terms: HealthTerms) -> float:
    """The part of the lane to use: nothing while it rests, a little until it succeeds, then more and more."""
    if health.rest_s == 0.0:
        return 1.0
    if is_resting(health, now_s):
        return 0.0
    if health.back_s is None:
        return terms.first_trust
    return_s = min(terms.return_part * max(0.0, health.back_s - health.since_s), terms.return_max_s)
    back = (now_s - health.back_s) / return_s if return_s > 0 else 1.0
    return min(1.0, terms.first_trust + (1.0 - terms.first_trust) * max(0.0, back))
