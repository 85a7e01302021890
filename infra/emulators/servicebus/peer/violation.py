"""What ends a session or a connection."""

from __future__ import annotations

__all__ = ["Violation"]


class Violation(Exception):
    """The peer broke the protocol; its session or connection ends with this condition."""

    def __init__(self, condition: str, description: str) -> None:
        super().__init__(description)
        self.condition = condition
