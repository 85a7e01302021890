"""Uploads: batch files that came over HTTP, spooled to disk, read on from where they stand after any restart.

The folder has a mark, an empty file named after a random id, and the name of each upload begins with that id. So an
upload that is gone can be told from a folder that is not there, or is another: a mount that is missing.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import msgspec
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

_MARK, _MARK_SUFFIX = "folder-", ".mark"
_PAUSE_SECONDS, _PAUSE_SECONDS_MAX = 1.0, 60.0
_GONE = "it is no longer in the folder of the uploads"

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
        self.path = self._draft
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
        """The file is complete and on disk, from now on at `path`; its SHA-256.

        Raises UsageError for one that is no batch file.
        """
        self._keep(self._unpacking.end())
        if self.form.is_blank:
            raise UsageError("the file is empty: there is nothing to run")
        if fault := self.form.fault:
            raise UsageError(f"the file {fault}")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        folder = self._draft.parent
        self.path = folder / f"{_folder_id(folder)}-{self._draft.stem}.jsonl"
        self._draft.replace(self.path)
        sync_folder(folder)
        return self._digest.digest()

    def discard(self) -> None:
        """Remove whatever there is of it."""
        with suppress(OSError):  # a full disk takes what is still buffered no more now than before
            self._file.close()
        self._draft.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


class _Pause(msgspec.Struct):
    """An upload that could not be read, until when it rests, and what was said of it."""

    reason: str
    until: float = 0.0
    seconds: float = _PAUSE_SECONDS / 2


class UploadReader:
    """Hands uploaded files to intake, oldest first, and removes each when it is read.

    One that can't be read now waits, is tried again after a pause of up to a minute, and holds up no other.
    """

    def __init__(
        self,
        database: Database,
        folder: Path,
        read_batch: Callable[[BatchRecord, BinaryIO], Iterator[BatchRecord]],
        is_stopping: Callable[[], bool],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._folder = folder
        self._read_batch = read_batch
        self._is_stopping = is_stopping
        self._monotonic = monotonic
        self._pauses: dict[bytes, _Pause] = {}

    def step(self) -> bool:
        """Read one file to its end, or until the broker stops; False when there was none that can be read now."""
        waiting = [
            record
            for record in self._database.read(batches.unfinished)
            if record.read_us is None and record.source_name.startswith(UPLOAD_PREFIX)
        ]
        kept = {record.batch_id for record in waiting}
        self._pauses = {batch_id: pause for batch_id, pause in self._pauses.items() if batch_id in kept}
        for record in waiting:
            pause = self._pauses.get(record.batch_id)
            if (pause is None or pause.until <= self._monotonic()) and self._was_read(record):
                self._pauses.pop(record.batch_id, None)
                return True
        return False

    def _was_read(self, record: BatchRecord) -> bool:
        """Whether there is nothing more to be read of it now; else it rests."""
        path = self._folder / record.source_name.removeprefix(UPLOAD_PREFIX)
        try:
            self._read(record, path)
        except UsageError as error:  # it will never be anything else
            self._give_up(record, str(error))
        except OSError as error:
            if not (isinstance(error, FileNotFoundError) and self._is_gone(path)):
                self._rest(record, f"{error.strerror or error}: {path}")
                return False
            self._give_up(record, _GONE)
        except Exception as error:
            if is_passing(error):
                raise
            self._rest(record, repr(error)[:200], error)
            return False
        return True

    def _rest(self, record: BatchRecord, reason: str, error: Exception | None = None) -> None:
        """Try it again later; the log is told once for each reason."""
        pause = self._pauses.setdefault(record.batch_id, _Pause(""))
        if pause.reason != reason:
            _log.error("upload_not_read", batch=record.batch_id.hex(), reason=reason, exc_info=error)
            pause.reason = reason
        pause.seconds = min(pause.seconds * 2, _PAUSE_SECONDS_MAX)
        pause.until = self._monotonic() + pause.seconds

    def _is_gone(self, path: Path) -> bool:
        """Whether the folder is there that the upload came into, and the upload alone is not."""
        folder_id, dash, _ = path.name.partition("-")
        # A build that named no folder took any folder of uploads for its own.
        is_there = _mark(self._folder, folder_id).exists if dash else partial(_has_mark, self._folder)
        try:
            return is_there() and not path.exists() and is_there()  # it may go, or come, between two looks
        except OSError:
            return False

    def sweep(self, kept_seconds: float) -> None:
        """Remove uploads that never became a batch, and those that are read, once nobody wrote to them for so long."""
        wanted = {record.source_name for record in self._database.read(batches.unfinished) if record.read_us is None}
        before = time.time() - kept_seconds
        for path in self._folder.glob("*"):
            if path.suffix == _MARK_SUFFIX or UPLOAD_PREFIX + path.name in wanted:
                continue
            with suppress(OSError):  # it goes at the next start
                if path.stat().st_mtime <= before:
                    path.unlink(missing_ok=True)

    def _give_up(self, record: BatchRecord, reason: str) -> None:
        """What was read of it runs, the rest is one refused line."""

        def work(connection: Connection) -> None:
            now = batches.get(connection, record.batch_id)
            if now is None or now.read_us is not None:
                return
            message = f"the upload can't be read on: {reason}"
            line = RefusedLine(now.read_lines + 1, None, ErrorCode.INVALID_LINE, message)
            if batches.advance_reading(
                connection,
                record.batch_id,
                from_bytes=now.read_bytes,
                lines=1,
                bytes_read=0,
                accepted=0,
                refused=1,
                read_us=utc_now_us(),
            ):
                batches.refuse_lines(connection, record.batch_id, [line])

        self._database.write(work)
        _log.warning("upload_given_up", batch=record.batch_id.hex(), reason=reason)

    def _read(self, record: BatchRecord, path: Path) -> None:
        with path.open("rb") as source:
            bytes_there = os.fstat(source.fileno()).st_size
            if bytes_there < record.source_bytes:
                message = f"it has {bytes_there:,} bytes of {record.source_bytes:,}"
                raise OSError(errno.EIO, message, str(path))
            for moved in self._read_batch(record, source):
                if moved.read_us is not None:
                    break
                if self._is_stopping():
                    return
        _log.info("upload_read", batch=record.batch_id.hex())
        with suppress(OSError):  # a sweep removes it
            path.unlink(missing_ok=True)


def _folder_id(folder: Path) -> str:
    """The id in the name of the folder's mark, which is made where there is none, and on disk with the folder."""
    for mark in sorted(folder.glob(f"{_MARK}*{_MARK_SUFFIX}")):
        return mark.name.removeprefix(_MARK).removesuffix(_MARK_SUFFIX)
    folder_id = secrets.token_hex(4)
    # Two processes may each make one: the folder is known by either.
    _mark(folder, folder_id).touch(mode=0o600)
    return folder_id


def _mark(folder: Path, folder_id: str) -> Path:
    return folder / f"{_MARK}{folder_id}{_MARK_SUFFIX}"


def _has_mark(folder: Path) -> bool:
    return any(folder.glob(f"{_MARK}*{_MARK_SUFFIX}"))
