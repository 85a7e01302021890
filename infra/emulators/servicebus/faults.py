"""Faults on order: what goes wrong, and where."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from infra.emulators.servicebus.queues.refusals import Refusal
from infra.emulators.serving.faults import Order

__all__ = ["Action", "Fault", "Injected", "Point"]


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
class Fault(Order):
    """Strikes at entities matching the pattern."""

    POINTS = Point
    ACTIONS = Action

    entity: str = "*"
    condition: str = "com.microsoft:server-busy"
    description: str = "The server is busy. (injected fault)"

    @property
    def pattern(self) -> str:
        return self.entity

    def refusal(self) -> Injected:
        return Injected(self.condition, self.description)
