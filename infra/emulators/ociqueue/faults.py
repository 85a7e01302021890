"""Faults on order: what goes wrong, where, and how often."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from infra.emulators.ociqueue.refusals import Refusal

__all__ = ["Action", "Fault", "Faults", "Point"]


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
class Fault:
    """Strikes `times` times, after `skip` occasions that it lets pass, at queues whose name matches the pattern."""

    point: Point
    action: Action
    queue: str = "*"
    status: int = 429
    code: str = "TooManyRequests"
    message: str = "Too many requests (injected fault)"
    retry_after_seconds: float | None = None
    delay_seconds: float = 0.0
    times: int = 1
    skip: int = 0
    number: int = field(default=0, compare=False)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Fault:
        """From JSON. Raises ValueError, TypeError or KeyError for what makes no fault."""
        return cls(**{**plain, "point": Point(plain["point"]), "action": Action(plain["action"])})

    def plain(self) -> dict[str, Any]:
        return {**vars(self), "point": self.point.value, "action": self.action.value}

    def refusal(self) -> Refusal:
        return Refusal(self.status, self.code, self.message, self.retry_after_seconds)


class Faults:
    """The orders that stand; the first that fits strikes."""

    def __init__(self) -> None:
        self._standing: list[Fault] = []
        self._numbers = itertools.count(1)

    def add(self, fault: Fault) -> int:
        """Its number."""
        fault.number = next(self._numbers)
        self._standing.append(fault)
        return fault.number

    def clear(self) -> None:
        self._standing.clear()

    def listed(self) -> list[Fault]:
        """Those that will still strike."""
        return list(self._standing)

    def strike(self, point: Point, queue: str) -> Fault | None:
        """The fault that happens now, if any."""
        for fault in self._standing:
            if fault.point is point and fnmatch.fnmatch(queue.lower(), fault.queue.lower()):
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                if fault.times <= 0:
                    self._standing.remove(fault)
                return fault
        return None
