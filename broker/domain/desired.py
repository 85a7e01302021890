"""What a lane should hold, as it is told to whoever starts and stops instances."""

from __future__ import annotations

import msgspec

__all__ = ["DESIRED_MESSAGES_MAX", "DESIRED_QUEUE", "LaneDesired"]

DESIRED_QUEUE = "desired"
"""Where the broker publishes on the jobs bus."""

DESIRED_MESSAGES_MAX = 1_000
"""How many messages the queue keeps: of more the oldest go, for only a lane's newest counts."""


class LaneDesired(msgspec.Struct, frozen=True, array_like=True, tag="lane_desired"):
    """From `at_us` on the lane should hold `desired` instances; then `ready` were there. Told at least once.

    Of two the one with the higher `generation` holds; it grows with every plan.
    """

    lane: str
    desired: int
    ready: int
    generation: int
    at_us: int
