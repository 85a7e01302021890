"""A lane's health: faults send it to rest, longer each time; then it comes back by degrees.

A state is a value; what happened and the time give the next one. How long it takes follows from how long the lane was
away, so that a fault of a moment is over in a moment.
"""

from __future__ import annotations

import msgspec

__all__ = [
    "LIVE",
    "SLOW",
    "WELL",
    "Health",
    "HealthTerms",
    "faulted",
    "is_on_trial",
    "is_resting",
    "rest_max_s",
    "succeeded",
    "trust",
]


class HealthTerms(msgspec.Struct, frozen=True):
    """How long a lane rests after its first fault, and at most; what part of it is used then.

    A lane that has long been away rests longer: `rest_part` of that time, at most `rest_longest_s`. From its first
    success on the part that is used rises to all of it, in `return_part` of the time for which it was away, at most
    `return_max_s`.
    """

    rest_s: float
    rest_max_s: float
    rest_part: float
    rest_longest_s: float
    return_part: float
    return_max_s: float
    first_trust: float = 0.25


LIVE = HealthTerms(
    rest_s=1.0, rest_max_s=4.0, rest_part=1 / 150, rest_longest_s=60.0, return_part=0.25, return_max_s=5.0
)
"""Where each job that fails or succeeds is told at once, and one job tries a lane after its rest.

So a lane is back within 4 s of its server's health while it was away for up to 10 minutes, and later within less than
a hundredth of the time; a server that is away for a day is asked once a minute.
"""

SLOW = HealthTerms(
    rest_s=60.0, rest_max_s=960.0, rest_part=0.0, rest_longest_s=960.0, return_part=1.0, return_max_s=480.0
)
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


def faulted(health: Health, now_s: float, terms: HealthTerms, *, floor_s: float = 0.0, jitter: float = 1.0) -> Health:
    """After a fault that speaks against the lane. While it rests, more of them are the same fault.

    It rests for `floor_s` at least, which is what its server asked for. `jitter`, 0 to 1, shortens the rest otherwise,
    so that many lanes of one server don't come back at once.
    """
    if is_resting(health, now_s):
        until_s = max(health.rests_until_s, now_s + floor_s)
        return health if until_s == health.rests_until_s else msgspec.structs.replace(health, rests_until_s=until_s)
    before = WELL if trust(health, now_s, terms) >= 1.0 else health
    since_s = before.since_s if before.rest_s else now_s
    rest_s = min(max(2.0 * before.rest_s, terms.rest_s), rest_max_s(now_s - since_s, terms))
    return Health(rest_s, now_s + max(rest_s * jitter, floor_s), since_s)


def rest_max_s(away_s: float, terms: HealthTerms) -> float:
    """The longest rest of a lane that has been away for so long."""
    return min(max(terms.rest_max_s, away_s * terms.rest_part), terms.rest_longest_s)


def is_on_trial(health: Health, now_s: float) -> bool:
    """Whether its rest is over and it has not succeeded since: one job may try it."""
    return health.rest_s > 0.0 and health.back_s is None and not is_resting(health, now_s)


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
