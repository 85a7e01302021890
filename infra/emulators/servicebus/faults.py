"""Faults on order: what goes wrong, where, and how often."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from infra.emulators.servicebus.queues.refusals import Refusal

__all__ = ["Action", "Fault", "Faults", "Injected", "Point"]


class Point(Enum):
    """Where a fault may strike."""

    CONNECT = "connect"  # a new connection, before its first byte is answered
    TOKEN = "token"  # $cbs put-token
    ATTACH = "attach"  # a link to a queue
    SEND = "send"  # a message or batch that a client sends
    SETTLE = "settle"  # complete, abandon, defer, dead-letter on the link
    MANAGEMENT = "management"  # any $management request
    ADMIN = "admin"  # any administration request over HTTP


class Action(Enum):
    """What goes wrong."""

    REFUSE = "refuse"  # nothing is done; the answer is an error
    DELAY = "delay"  # it is done; the answer comes late
    LOSE = "lose"  # it is done; the answer never comes
    DROP_BEFORE = "drop_before"  # the connection is cut; nothing is done
    DROP_AFTER = "drop_after"  # it is done; the connection is cut instead of an answer
    DETACH = "detach"  # it is done; the link is detached instead of an answer


class Injected(Refusal):
    """The error that a fault asks for."""

    def __init__(self, condition: str, description: str) -> None:
        super().__init__(description)
        self.condition = condition
        self.status = 503 if condition.endswith("server-busy") else 500


@dataclass
class Fault:
    """Strikes `times` times, after `skip` occasions that it lets pass, at entities matching the pattern."""

    point: Point
    action: Action
    entity: str = "*"
    condition: str = "com.microsoft:server-busy"
    description: str = "The server is busy. (injected fault)"
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

    def refusal(self) -> Injected:
        return Injected(self.condition, self.description)


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

    def strike(self, point: Point, entity: str) -> Fault | None:
        """The fault that happens now, if any."""
        for fault in self._standing:
            if fault.point is point and fnmatch.fnmatch(entity.lower(), fault.entity.lower()):
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                if fault.times <= 0:
                    self._standing.remove(fault)
                return fault
        return None
