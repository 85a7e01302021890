"""Wake-ups between stages: a hint that there is work, never the work itself; every waiter also polls."""

from __future__ import annotations

import threading
from enum import StrEnum

__all__ = ["Topic", "Wakeups"]


class Topic(StrEnum):
    """Who is woken."""

    PLANNER = "planner"
    DISPATCHER = "dispatcher"
    RELAY = "relay"
    ASSEMBLER = "assembler"


class Wakeups:
    """In one process. A wake-up that comes while its stage works is kept until the stage waits again."""

    def __init__(self) -> None:
        self._events = {topic: threading.Event() for topic in Topic}

    def notify(self, *topics: Topic) -> None:
        """Wake the stages of these topics."""
        for topic in topics:
            self._events[topic].set()

    def wait(self, topic: Topic, timeout_seconds: float) -> None:
        """Sleep until notified, or for `timeout_seconds`."""
        event = self._events[topic]
        event.wait(timeout_seconds)
        event.clear()
