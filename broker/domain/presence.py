"""Presence: a worker says that it is there, and the broker counts on it for a while."""

from __future__ import annotations

import msgspec

__all__ = [
    "PRESENCE_SECONDS",
    "RESOURCE_ID_CHARS_MAX",
    "SLOTS_MAX",
    "WORKER_ID_CHARS_MAX",
    "PresenceAnswer",
    "WorkerPresence",
]

PRESENCE_SECONDS = 15.0
"""How long after its last word a worker is still counted on; it speaks three times as often."""

RESOURCE_ID_CHARS_MAX = 512
WORKER_ID_CHARS_MAX = 128
SLOTS_MAX = 100_000


class WorkerPresence(msgspec.Struct, frozen=True, array_like=True, tag="presence"):
    """This worker serves a lane with so many slots, none while its engine starts.

    `leaving`: it takes nothing more and hands back what it has; `gone`: it has, and this is its last word.
    `resource_id` is the cloud's name of its machine. Fields are only ever added at the end, each with a default: so
    doors and workers of different versions understand each other.
    """

    worker_id: str
    lane: str
    slots: int
    leaving: bool = False
    resource_id: str = ""
    gone: bool = False

    @property
    def is_starting(self) -> bool:
        """Whether it can't take a shard yet."""
        return self.slots == 0 and not self.leaving


class PresenceAnswer(msgspec.Struct, frozen=True, array_like=True):
    """`now_us` is the broker's time, by which the worker sets its own."""

    now_us: int
