"""An append-only file of what the queues hold, so that even `kill -9` loses nothing that was confirmed.

Each line is a JSON array. What was written is handed to the system before the sender hears of it; it is not forced
to disk, so a crash of the machine may lose the end. A torn last line is dropped. Rewritten compactly at each start.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

__all__ = ["JournalFile"]


class JournalFile:
    """Read at the start, then begun anew. Until then nothing is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def records(self) -> Iterator[list[Any]]:
        """What was written before, oldest first."""
        lines = self._path.read_bytes().split(b"\n")[:-1] if self._path.exists() else []
        return map(json.loads, lines)

    def write(self, record: list[Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
            self._file.flush()

    @contextmanager
    def begun_anew(self) -> Iterator[None]:
        """What is written within takes the old file's place at the end; what comes later is added to it."""
        fresh = self._path.with_suffix(".new")
        self._file = fresh.open("wb")
        yield
        fresh.replace(self._path)
