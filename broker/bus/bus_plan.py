"""What a bus needs and what is there: the lines of `broker bus plan` and `broker bus apply`."""

from __future__ import annotations

from enum import StrEnum

import msgspec

__all__ = ["BusPlan", "BusPlanLine", "QueueState"]


class QueueState(StrEnum):
    PRESENT = "present"
    MISSING = "missing"
    CREATED = "created"
    DIFFERENT = "different"  # it is there in another form, and a person must decide
    NOT_NEEDED = "not needed"  # nothing is to be made on this kind of bus


class BusPlanLine(msgspec.Struct, frozen=True, kw_only=True):
    """One thing on one bus. `bus` is its URL without the password, `name` a queue or a setting of the server."""

    bus: str
    name: str
    state: QueueState
    note: str = ""


class BusPlan(msgspec.Struct, frozen=True):
    lines: tuple[BusPlanLine, ...]

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing and nothing stands in the way."""
        return not any(line.state in {QueueState.MISSING, QueueState.DIFFERENT} for line in self.lines)
