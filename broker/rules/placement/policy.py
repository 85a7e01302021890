"""The planner's settings. The defaults were chosen by reasoning and by sweeps over generated loads; see docs."""

from __future__ import annotations

import msgspec

__all__ = ["Policy"]


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What the planner is told once.

    `shares` caps each named provider's part of the work, 0 to 1; `share_all` caps every provider's.
    """

    control_s: float = 60.0  # between two plans
    start_slack: float = 1.25  # a start may take that much longer than believed
    urgent_margin: float = 1.15  # over the expected rate of work that can't wait for a start
    hard_horizon_s: float = 7_200.0  # due within it is hard, later is soft
    soft_horizon_s: float = 86_400.0  # over which backlog is spread when kinds are weighed against each other
    soft_pace: float = 0.6  # of its time is what soft work gets; the rest is kept for outages
    cap_headroom: float = 1.1  # soft work may use lanes up to so much of the day's demand
    steady_part: float = 0.8  # lanes that so much of the day's demand fills run whenever there is work,
    steady_below: float = 0.9  # where they cost less than that part of the next
    standby: float | None = None  # capacity stands by for so many times an urgent stream's daily mean, even if idle;
    # None: for what costs least by the last day's jumps, see `standby`
    missed_job_nano_usd: int | None = None  # what a missed urgent job costs; None: a hundred times what doing it costs
    standby_s: float = 3_600.0  # more stands by if the backlog fills it for so long
    add_above: float = 0.6  # of an instance must be needed to start it,
    keep_above: float = 0.15  # and this to keep it
    hold_s: float = 300.0  # an instance stays after it was last wanted
    shares: dict[str, float] = {}
    share_all: float = 1.0
    share_feedback_s: float = 21_600.0  # in which a share's excess is made up for
    share_lead_s: float = 120.0  # work that must start within it never waits for a share
    preemptions_max: int = 3  # from then on a job stays off interruptible lanes
    late_last: bool = True  # what is late waits for what can still be in time
    tenant_weights: dict[str, float] = {}

    @property
    def limits_shares(self) -> bool:
        """Whether any provider is limited."""
        return self.share_all < 1.0 or any(share < 1.0 for share in self.shares.values())

    def share_of(self, provider: str) -> float:
        return self.shares.get(provider, self.share_all)
