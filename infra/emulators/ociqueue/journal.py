"""What the queues hold, as lines of a journal.

Receipts and work requests don't outlive the process: what was in flight is visible again, its deliveries counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infra.emulators.ociqueue.messages import Message
from infra.emulators.ociqueue.queues import DEAD_SUFFIX, Queue, Queues, plain_description
from infra.emulators.serving.journal import JournalFile

__all__ = ["Journal"]


class Journal:
    """Opened before the queues that it keeps; `restore` fills these and begins the file anew."""

    def __init__(self, path: Path) -> None:
        self._file = JournalFile(path)

    def kept(self, queue: str, message: Message) -> None:
        times = (message.created_ms, message.expires_ms)
        self._file.write(
            ["put", queue, message.number, message.content, message.metadata, *times, message.delivery_count]
        )

    def delivered(self, queue: str, message: Message) -> None:
        self._file.write(["count", queue, message.number, message.delivery_count])

    def dropped(self, queue: str, number: int) -> None:
        self._file.write(["drop", queue, number])

    def described(self, queue: Queue) -> None:
        self._file.write(["queue", queue.ocid, plain_description(queue), queue.created_ms])

    def deleted(self, ocid: str) -> None:
        self._file.write(["gone", ocid])

    def restore(self, queues: Queues) -> int:
        """Fill them with what was kept; how many messages."""
        described, messages = self._read()
        restored = {ocid: queues.restore(ocid, plain, created_ms) for ocid, (plain, created_ms) in described.items()}
        for (name, _), message in sorted(messages.items(), key=lambda item: item[0][1]):
            queue = restored[name.removesuffix(DEAD_SUFFIX)]
            queues.restore_message(queue.dead if name.endswith(DEAD_SUFFIX) else queue.messages, message)
        self._begin(list(restored.values()))
        return len(messages)

    def _begin(self, queues: list[Queue]) -> None:
        with self._file.begun_anew():
            for queue in queues:
                self.described(queue)
                for messages in (queue.messages, queue.dead):
                    for message in messages.held():
                        self.kept(messages.name, message)

    def _read(self) -> tuple[dict[str, tuple[dict[str, Any], int]], dict[tuple[str, int], Message]]:
        described: dict[str, tuple[dict[str, Any], int]] = {}
        messages: dict[tuple[str, int], Message] = {}
        for kind, name, *rest in self._file.records():
            if kind == "queue":
                described[name] = (rest[0], rest[1])
            elif kind == "gone":
                described.pop(name, None)
                for key in [key for key in messages if key[0].removesuffix(DEAD_SUFFIX) == name]:
                    del messages[key]
            elif kind == "put":
                messages[name, rest[0]] = Message(*rest)
            elif kind == "count":
                messages[name, rest[0]].delivery_count = rest[1]
            else:
                messages.pop((name, rest[0]), None)
        return described, messages
