"""Uploads: batch files that came over HTTP, spooled to disk, read on from where they stand after any restart."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import structlog

from broker.clock import utc_now_us
from broker.database import batches
from broker.database.batches import BatchRecord
from broker.database.connection import Connection, Database
from broker.database.failures import is_passing
from broker.domain.errors import ErrorCode, UsageError
from broker.domain.ids import new_id
from broker.domain.job import RefusedLine
from broker.durable import sync_folder
from broker.intake.unpacking import Unpacking
from broker.rules.file_form import FileForm, LineCount

__all__ = ["UPLOAD_BYTES_MAX", "UPLOAD_PREFIX", "FileTooLarge", "Spool", "UploadReader"]

UPLOAD_BYTES_MAX = 10_000_000_000
"""Of a file that is copied before it is read, packed or unpacked."""

UPLOAD_PREFIX = "upload:"
"""Before the name of an upload in its batch's `source_name`: the folder may move, or be named in another way."""

_log = structlog.get_logger(__name__)


class FileTooLarge(UsageError):
    """It has more bytes, or lines, than are taken in."""


class Spool:
    """One upload on its way to disk; at most `bytes_max` bytes and, where not None, `lines_max` lines.

    What comes packed with gzip is unpacked, and the limits are of what comes out.
    """

    def __init__(self, folder: Path, bytes_max: int, lines_max: int | None) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._draft = folder / f"{new_id().hex()}.part"
        self.path = self._draft.with_suffix(".jsonl")
        self._bytes_max = bytes_max
        self._lines_max = lines_max
        self._digest = sha256()
        self._count = LineCount()
        self._came = 0
        self._unpacking = Unpacking()
        self._file = self._draft.open("wb")
        self.form = FileForm()
        self.bytes_count = 0

    def add(self, chunk: bytes) -> None:
        """Keep the next bytes. Raises FileTooLarge beyond a limit, UsageError for what can't be unpacked."""
        self._came += len(chunk)
        for piece in self._unpacking.feed(chunk):
            self._keep(piece)

    def _keep(self, piece: bytes) -> None:
        self.bytes_count += len(piece)
        if max(self.bytes_count, self._came) > self._bytes_max:
            raise FileTooLarge(f"the file is larger than {self._bytes_max:,} bytes, the limit of an upload")
        if self._lines_max is not None:
            self._count.see(piece)
            if self._count.lines > self._lines_max:
                raise FileTooLarge(f"the file has more than {self._lines_max:,} lines, the limit of a batch")
        self.form.see(piece)
        self._digest.update(piece)
        self._file.write(piece)

    def finish(self) -> bytes:
        """The file is complete and on disk, at `path`; its SHA-256. Raises UsageError for one that is no batch file."""
        self._keep(self._unpacking.end())
        if self.form.is_blank:
            raise UsageError("the file is empty: there is nothing to run")
        if fault := self.form.fault:
            raise UsageError(f"the file {fault}")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._draft.replace(self.path)
        sync_folder(self.path.parent)
        return self._digest.digest()

    def discard(self) -> None:
        """Remove whatever there is of it."""
        with suppress(OSError):  # a full disk takes what is still buffered no more now than before
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
            if record.read_us is None and record.source_name.startswith(UPLOAD_PREFIX):
                try:
                    self._read(record, self._folder / record.source_name.removeprefix(UPLOAD_PREFIX))
                except OSError as error:
                    self._give_up(record, error)
                except Exception as error:
                    if is_passing(error):
                        raise
                    # It is tried again at each step, and named each time; those after it don't wait for that.
                    _log.exception("upload_not_read", batch=record.batch_id.hex())
                    continue
                return True
        return False

    def sweep(self, kept_seconds: float) -> None:
        """Remove uploads that never became a batch, and those that are read, once nobody wrote to them for so long."""
        wanted = {record.source_name for record in self._database.read(batches.unfinished) if record.read_us is None}
        before = time.time() - kept_seconds
        for path in self._folder.glob("*"):
            if UPLOAD_PREFIX + path.name not in wanted and path.stat().st_mtime <= before:
                path.unlink(missing_ok=True)

    def _give_up(self, record: BatchRecord, error: OSError) -> None:
        """The file is gone, or its disk fails: what was read of it runs, the rest is one refused line."""
        message = f"the upload can't be read on: {error.strerror}"
        line = RefusedLine(record.read_lines + 1, None, ErrorCode.INVALID_LINE, message)

        def work(connection: Connection) -> None:
            batches.refuse_lines(connection, record.batch_id, [line])
            batches.advance_reading(
                connection, record.batch_id, lines=1, bytes_read=0, accepted=0, refused=1, read_us=utc_now_us()
            )

        self._database.write(work)
        _log.warning("upload_given_up", batch=record.batch_id.hex(), reason=error.strerror)

    def _read(self, record: BatchRecord, path: Path) -> None:
        with path.open("rb") as source:
            for moved in self._read_batch(record, source):
                if moved.read_us is not None:
                    break
                if self._is_stopping():
                    return
        path.unlink(missing_ok=True)
        _log.info("upload_read", batch=record.batch_id.hex())
