"""A message in a queue, and how it looks to whoever receives or peeks it."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple
from uuid import UUID

from infra.emulators.servicebus.queues.message import Content, render
from infra.emulators.servicebus.wire.values import Int, Long, Timestamp

__all__ = ["Delivery", "State", "Stored"]


class State(IntEnum):
    """The service's own numbers, which travel in `x-opt-message-state`."""

    ACTIVE = 0
    DEFERRED = 1
    SCHEDULED = 2


class Stored:
    """One message of a queue. Times are milliseconds since 1970; a message under a lock has a token."""

    __slots__ = (
        *("content", "delivery_count", "due_ms", "enqueued_ms", "expires_ms"),
        *("extra", "lock_token", "locked_until_ms", "sequence", "state"),
    )

    def __init__(self, content: Content, sequence: int, enqueued_ms: int, expires_ms: int | None) -> None:
        self.content = content
        self.sequence = sequence
        self.enqueued_ms = enqueued_ms
        self.expires_ms = expires_ms
        self.due_ms: int | None = None  # when a scheduled message becomes active
        self.state = State.ACTIVE
        self.delivery_count = 0
        self.lock_token: UUID | None = None
        self.locked_until_ms = 0
        self.extra: dict[str, Any] = {}  # application properties added since: reasons, properties to modify

    def encoded(self, *, with_lock: bool = True) -> bytes:
        """The message for a receiver, or without its lock for one who only peeks."""
        annotations: dict[str, Any] = {
            "x-opt-enqueued-time": Timestamp(self.enqueued_ms),
            "x-opt-sequence-number": Long(self.sequence),
            "x-opt-enqueue-sequence-number": Long(self.sequence),
            "x-opt-message-state": Int(self.state),
        }
        if with_lock and self.lock_token is not None:
            annotations["x-opt-locked-until"] = Timestamp(self.locked_until_ms)
        return render(self.content, self.delivery_count, annotations, self.extra)


class Delivery(NamedTuple):
    """One message handed out: its bytes, and the token of its lock unless it was removed at once."""

    sequence: int
    token: UUID | None
    data: bytes
