"""Presence: a worker says that it is there, and the broker counts on it for a while."""

from __future__ import annotations

import msgspec

__all__ = ["PRESENCE_SECONDS", "PresenceAnswer", "WorkerPresence"]

PRESENCE_SECONDS = 15.0
"""How long after its last word a worker is still counted on; it speaks three times as often."""


class WorkerPresence(msgspec.Struct, frozen=True, array_like=True, tag="presence"):
    """This worker serves a lane with so many slots; `leaving`: it takes nothing more and hands back what it has."""

    worker_id: str
    lane: str
    slots: int
    leaving: bool = False


class PresenceAnswer(msgspec.Struct, frozen=True, array_like=True):
    """`now_us` is the broker's time, by which the worker sets its own."""

    now_us: int
