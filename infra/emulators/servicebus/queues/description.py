"""How a queue was asked to behave."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["FOREVER_MS", "QueueDescription", "QueueStatus", "RefusedDescription", "check"]

FOREVER_MS = 922_337_203_685_477
"""The longest .NET TimeSpan, which the service uses for "never"."""
_MINUTE_MS = 60_000
_DAY_MS = 86_400_000


class RefusedDescription(ValueError):
    """The service, or this emulator of it, knows no such queue; the text says which field and why."""


class QueueStatus(Enum):
    """What a queue lets happen."""

    ACTIVE = "Active"
    DISABLED = "Disabled"
    SEND_DISABLED = "SendDisabled"
    RECEIVE_DISABLED = "ReceiveDisabled"


@dataclass(frozen=True)
class QueueDescription:
    """The settings of a queue with the service's own defaults, times in milliseconds."""

    lock_duration_ms: int = 60_000
    max_size_megabytes: int = 1024
    requires_duplicate_detection: bool = False
    requires_session: bool = False
    default_ttl_ms: int = FOREVER_MS
    dead_letters_expired: bool = False
    duplicate_window_ms: int = 600_000
    max_delivery_count: int = 10
    enable_batched_operations: bool = True
    status: QueueStatus = QueueStatus.ACTIVE
    user_metadata: str | None = None
    auto_delete_on_idle_ms: int = FOREVER_MS
    enable_partitioning: bool = False
    enable_express: bool = False
    max_message_kilobytes: int = 256


def check(description: QueueDescription, before: QueueDescription | None = None, *, strict: bool = True) -> None:
    """Raise RefusedDescription for what can't be. Without `strict`, tests may go below the service's limits."""
    if description.requires_session:
        raise RefusedDescription("RequiresSession: this emulator has no sessions")
    ranges = {
        "lock_duration_ms": (5_000 if strict else 1, 5 * _MINUTE_MS),
        "max_delivery_count": (1, 2_000),
        "default_ttl_ms": (1_000 if strict else 1, FOREVER_MS),
        "duplicate_window_ms": (20_000 if strict else 1, 7 * _DAY_MS),
        "auto_delete_on_idle_ms": (5 * _MINUTE_MS, FOREVER_MS),
        "max_size_megabytes": (1, 81_920),
        "max_message_kilobytes": (1, 102_400),
    }
    for name, (low, high) in ranges.items():
        value = getattr(description, name)
        if not low <= value <= high:
            raise RefusedDescription(f"{name} is {value}; it must lie between {low} and {high}")
    fixed = ("requires_duplicate_detection", "requires_session", "enable_partitioning")
    changed = [name for name in fixed if before is not None and getattr(before, name) != getattr(description, name)]
    if changed:
        raise RefusedDescription(f"{changed[0]} can't be changed once the queue exists")
