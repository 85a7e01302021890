"""What waits to be placed: groups of jobs that can't be told apart, and streams that more of them come from."""

from __future__ import annotations

import msgspec

__all__ = ["Demands", "Group", "Stream", "Terms"]


class Demands(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hard limits on where a job may run; empty means no limit. Never relaxed, whatever else fails.

    `interruptible` False keeps a job off instances that may be taken away; `context_tokens_min`
    leaves a lane that doesn't say its window.
    """

    lanes: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    denied_providers: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    denied_regions: tuple[str, ...] = ()
    markets: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    interruptible: bool = True
    job_cost_max_nano_usd: int | None = None
    pictures: bool = False
    context_tokens_min: int = 0


class Terms(msgspec.Struct, frozen=True):
    """What decides which lanes may serve a job, and how fast: all groups of the same terms share that answer."""

    model: str
    kind: str
    demands: Demands = Demands()


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Waiting jobs of one tenant, on the same terms, that must start by `start_by_s` (their deadline less service).

    `preemptions` counts how often instances were taken from under them.
    """

    group_id: str
    tenant: str
    terms: Terms
    start_by_s: float
    jobs: float
    preemptions: int = 0


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """Where jobs of the same terms keep coming from. Rates are jobs per second.

    `start_within_s` is how long after arrival they must start; `expected_rate` what is believed of the time that
    a start takes, `sudden_rate` what it could rise to in that time at worst, `recent_rate` the last two minutes'
    mean, `day_rate` that of the last 24 hours. `standby_rate` is what capacity stands by for beyond what is expected,
    whether other work fills it or not; it counts for streams that can't wait for a start.
    """

    terms: Terms
    start_within_s: float
    recent_rate: float
    expected_rate: float
    sudden_rate: float
    day_rate: float
    standby_rate: float = 0.0
