"""Uploads: batch files that came over HTTP, spooled to disk, read on from where they stand after any restart."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import structlog

from broker.database import batches
from broker.database.batches import BatchRecord
from broker.database.connection import Database
from broker.domain.errors import UsageError
from broker.domain.ids import new_id

__all__ = ["Spool", "UploadReader"]

_log = structlog.get_logger(__name__)


class Spool:
    """One upload on its way to disk; at most `bytes_max` bytes and, where not None, `lines_max` lines."""

    def __init__(self, folder: Path, bytes_max: int, lines_max: int | None) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._draft = folder / f"{new_id().hex()}.part"
        self.path = self._draft.with_suffix(".jsonl")
        self._bytes_max = bytes_max
        self._lines_max = lines_max
        self._digest = sha256()
        self._lines = 0
        self._file = self._draft.open("wb")
        self.bytes_count = 0

    def add(self, chunk: bytes) -> None:
        """Keep the next bytes. Raises UsageError beyond a limit."""
        self.bytes_count += len(chunk)
        self._lines += chunk.count(b"\n")
        if self.bytes_count > self._bytes_max:
            raise UsageError(f"the file is larger than {self._bytes_max:,} bytes, the limit of an upload")
        if self._lines_max is not None and self._lines > self._lines_max:
            raise UsageError(f"the file has more than {self._lines_max:,} lines, the limit of a batch")
        self._digest.update(chunk)
        self._file.write(chunk)

    def finish(self) -> bytes:
        """The file is complete and on disk, at `path`; its SHA-256."""
        if self.bytes_count == 0:
            raise UsageError("the file is empty: there is nothing to run")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._draft.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        return self._digest.digest()

    def discard(self) -> None:
        """Remove whatever there is of it."""
        self._file.close()
        self._draft.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


class UploadReader:
    """Hands uploaded files to intake, oldest first, and removes each when it is read."""

    def __init__(
        self,
        database: Database,
        folder: Path,
        read_batch: Callable[[BatchRecord, BinaryIO], Iterator[BatchRecord]],
        is_stopping: Callable[[], bool],
    ) -> None:
        self._database = database
        self._folder = folder
        self._read_batch = read_batch
        self._is_stopping = is_stopping

    def step(self) -> bool:
        """Read one file to its end, or until the broker stops; False when there was none."""
        for record in self._database.read(batches.unfinished):
            path = Path(record.source_name)
            if record.read_us is None and path.parent == self._folder:
                self._read(record, path)
                return True
        return False

    def sweep(self) -> None:
        """At the start: remove uploads that never became a batch, and those that are read."""
        wanted = {record.source_name for record in self._database.read(batches.unfinished) if record.read_us is None}
        for path in self._folder.glob("*"):
            if str(path) not in wanted:
                path.unlink(missing_ok=True)

    def _read(self, record: BatchRecord, path: Path) -> None:
        with path.open("rb") as source:
            for moved in self._read_batch(record, source):
                if moved.read_us is not None:
                    break
                if self._is_stopping():
                    return
        path.unlink(missing_ok=True)
        _log.info("upload_read", batch=record.batch_id.hex())
