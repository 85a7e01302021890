"""The planner's settings. The defaults were chosen by reasoning and by sweeps over generated loads; see docs."""

from __future__ import annotations

import msgspec

__all__ = ["Policy"]


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What the planner is told once.

    Hard work is due within `hard_horizon_s`; all else that is due within `soft_horizon_s` is soft. `shares` caps
    each named supplier's part of the work, 0 to 1; `share_all` caps every supplier's.
    """

    control_s: float = 60.0
    urgent_margin: float = 1.15
    steady_below: float = 0.9
    steady_part: float = 0.8
    standby_s: float = 3_600.0
    hard_horizon_s: float = 7_200.0
    soft_horizon_s: float = 86_400.0
    soft_pace: float = 0.6
    start_spread_s: float = 7_200.0
    start_slack: float = 1.25
    add_above: float = 0.6
    keep_above: float = 0.15
    hold_s: float = 300.0
    cap_headroom: float = 1.1
    shares: dict[str, float] = {}
    share_all: float = 1.0
    share_feedback_s: float = 21_600.0
    preemptions_max: int = 3
    tenant_weights: dict[str, float] = {}

    def share_of(self, provider: str) -> float:
        return self.shares.get(provider, self.share_all)
