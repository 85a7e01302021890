"""All queues of the emulated namespace, by name without regard to case."""

from __future__ import annotations

import re

from infra.emulators.servicebus.queues.description import QueueDescription, check
from infra.emulators.servicebus.queues.queue import Keeper, Queue

__all__ = ["Entry", "InvalidName", "Namespace", "QueueExists"]

DEAD_LETTERS = "/$deadletterqueue"
NOT_FORWARDED = f"/$transfer{DEAD_LETTERS}"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~/-]{0,259}")


class QueueExists(Exception):
    """A queue of that name is there already."""


class InvalidName(ValueError):
    """No queue may have that name."""


class Entry:
    """A queue with what only administration asks for."""

    def __init__(self, queue: Queue, now_ms: int) -> None:
        self.queue = queue
        self.not_forwarded = Queue(f"{queue.name}/$Transfer/$DeadLetterQueue", queue.description)  # always empty here
        self.created_ms = self.updated_ms = self.accessed_ms = now_ms


class Namespace:
    """Its queues. With `strict` it holds them to the service's own limits; tests want shorter locks."""

    def __init__(self, keeper: Keeper | None = None, *, strict: bool = False) -> None:
        self.keeper = keeper
        self._strict = strict
        self._entries: dict[str, Entry] = {}

    def create(self, now_ms: int, name: str, description: QueueDescription) -> Entry:
        if not NAME.fullmatch(name) or name.endswith("/") or "//" in name:
            raise InvalidName(f"'{name}' can't be the name of a queue")
        if name.lower() in self._entries:
            raise QueueExists(name)
        check(description, strict=self._strict)
        entry = Entry(Queue.with_dead_letters(name, description, self.keeper), now_ms)
        self._entries[name.lower()] = entry
        if self.keeper is not None:
            self.keeper.created(name, description)
        return entry

    def update(self, now_ms: int, name: str, description: QueueDescription) -> Entry:
        """Raises KeyError where there is no such queue."""
        entry = self._entries[name.lower()]
        check(description, entry.queue.description, strict=self._strict)
        entry.queue.description = description
        if entry.queue.dead is not None:
            entry.queue.dead.description = description
        entry.updated_ms = now_ms
        if self.keeper is not None:
            self.keeper.created(entry.queue.name, description)
        return entry

    def delete(self, name: str) -> Entry | None:
        """The queue that is gone now, or None."""
        entry = self._entries.pop(name.lower(), None)
        if entry is not None and self.keeper is not None:
            self.keeper.deleted(entry.queue.name)
        return entry

    def entry(self, name: str) -> Entry | None:
        return self._entries.get(name.lower())

    def entries(self) -> list[Entry]:
        return [entry for _, entry in sorted(self._entries.items())]

    def find(self, address: str) -> Queue | None:
        """The queue or dead-letter queue at an address such as `orders` or `orders/$DeadLetterQueue`."""
        lowered = address.lower()
        if lowered.endswith(NOT_FORWARDED):
            entry = self._entries.get(lowered.removesuffix(NOT_FORWARDED))
            return None if entry is None else entry.not_forwarded
        if lowered.endswith(DEAD_LETTERS):
            entry = self._entries.get(lowered.removesuffix(DEAD_LETTERS))
            return None if entry is None else entry.queue.dead
        entry = self._entries.get(lowered)
        return None if entry is None else entry.queue
