"""Faults on order: what goes wrong, and where."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from infra.emulators.ociqueue.refusals import Refusal
from infra.emulators.serving.faults import Order

__all__ = ["Action", "Fault", "Point"]


class Point(Enum):
    """Where a fault may strike."""

    PUT = "put"
    GET = "get"
    UPDATE = "update"
    DELETE = "delete"
    STATS = "stats"  # and the list of channels
    ADMIN = "admin"  # queues and work requests


class Action(Enum):
    """What goes wrong."""

    REFUSE = "refuse"  # nothing is done; the answer is an error
    DELAY = "delay"  # it is done; the answer comes late
    LOSE = "lose"  # it is done; the answer never comes
    DROP_BEFORE = "drop_before"  # the connection is cut; nothing is done
    DROP_AFTER = "drop_after"  # it is done; the connection is cut instead of an answer
    SPOIL = "spoil"  # of a batch of updates or deletions every second entry fails with the status, and a single one


@dataclass
class Fault(Order):
    """Strikes at queues whose name matches the pattern."""

    POINTS = Point
    ACTIONS = Action

    queue: str = "*"
    status: int = 429
    code: str = "TooManyRequests"
    message: str = "Too many requests (injected fault)"
    retry_after_seconds: float | None = None

    @property
    def pattern(self) -> str:
        return self.queue

    def refusal(self) -> Refusal:
        return Refusal(self.status, self.code, self.message, self.retry_after_seconds)
