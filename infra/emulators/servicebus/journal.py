"""What the queues hold, as lines of a journal.

Locks, links and the history of duplicate detection don't outlive the process.
"""

from __future__ import annotations

import base64
from dataclasses import asdict
from pathlib import Path
from typing import Any

from infra.emulators.servicebus.queues.description import QueueDescription, QueueStatus
from infra.emulators.servicebus.queues.message import Content, content_of, render
from infra.emulators.servicebus.queues.namespace import Namespace
from infra.emulators.servicebus.queues.stored import State, Stored
from infra.emulators.servicebus.wire.decode import decode_all
from infra.emulators.servicebus.wire.encode import encode
from infra.emulators.serving.journal import JournalFile

__all__ = ["Journal"]


class Journal:
    """Opened before the namespace that it keeps; `restore` fills that and begins the file anew."""

    def __init__(self, path: Path) -> None:
        self._file = JournalFile(path)

    def kept(self, entity: str, message: Stored) -> None:
        self._file.write(["put", entity, *_plain(message)])

    def dropped(self, entity: str, sequence: int) -> None:
        self._file.write(["drop", entity, sequence])

    def created(self, name: str, description: QueueDescription, sequence: int = 0) -> None:
        self._file.write(["queue", name, {**asdict(description), "status": description.status.value}, sequence])

    def deleted(self, name: str) -> None:
        self._file.write(["gone", name])

    def restore(self, namespace: Namespace, now_ms: int) -> int:
        """Fill the namespace with what was kept; how many messages."""
        queues, messages = self._read()
        for name, (description, _) in queues.items():
            namespace.create(now_ms, name, description)
        for (entity, _), message in sorted(messages.items(), key=lambda item: item[0][1]):
            if (queue := namespace.find(entity)) is not None:
                queue.restore(message)
        for name, (_, sequence) in queues.items():
            if (queue := namespace.find(name)) is not None:
                highest = max((number for (entity, number) in messages if entity.startswith(name)), default=0)
                queue.sequence = max(queue.sequence, sequence, highest)
        self._begin(namespace, messages)
        return len(messages)

    def _begin(self, namespace: Namespace, messages: dict[tuple[str, int], Stored]) -> None:
        with self._file.begun_anew():
            for entry in namespace.entries():
                self.created(entry.queue.name, entry.queue.description, entry.queue.sequence)
            for (entity, _), message in messages.items():
                self.kept(entity, message)

    def _read(self) -> tuple[dict[str, tuple[QueueDescription, int]], dict[tuple[str, int], Stored]]:
        queues: dict[str, tuple[QueueDescription, int]] = {}
        messages: dict[tuple[str, int], Stored] = {}
        for kind, name, *rest in self._file.records():
            if kind == "queue":
                fields = {**rest[0], "status": QueueStatus(rest[0]["status"])}
                queues[name] = (QueueDescription(**fields), rest[1])
            elif kind == "gone":
                queues.pop(name, None)
                for key in [key for key in messages if key[0].partition("/$")[0] == name]:
                    del messages[key]
            elif kind == "put":
                messages[name, rest[0]] = _stored(rest)
                description, sequence = queues.get(name.partition("/$")[0], (QueueDescription(), 0))
                queues[name.partition("/$")[0]] = (description, max(sequence, rest[0]))
            else:
                messages.pop((name, rest[0]), None)
        return queues, messages


def _plain(message: Stored) -> list[Any]:
    data = render(message.content, 0, {}, {})
    return [
        *(message.sequence, int(message.state), message.delivery_count),
        *(message.enqueued_ms, message.expires_ms, message.due_ms),
        *(_text(encode(message.extra)), _text(data)),
    ]


def _stored(fields: list[Any]) -> Stored:
    sequence, state, count, enqueued_ms, expires_ms, due_ms, extra, data = fields
    content: Content = content_of(base64.b64decode(data))
    message = Stored(content, sequence, enqueued_ms, expires_ms)
    message.state, message.delivery_count, message.due_ms = State(state), count, due_ms
    message.extra = decode_all(base64.b64decode(extra))
    return message


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
