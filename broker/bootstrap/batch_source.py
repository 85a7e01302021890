"""What `batch run` reads: a file, or a copy of what can be read only once, or comes packed."""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

import msgspec

from broker.domain.errors import BrokerError, UsageError, reason_of
from broker.intake.unpacking import reader_of, unpacked
from broker.intake.uploads import UPLOAD_BYTES_MAX
from broker.rules.file_form import FileForm, LineCount

__all__ = ["Source", "default_output", "open_source", "read_once", "sees_as_file"]

_STANDARD_INPUT = "-"
_PIECE_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"
_NAMELESS = re.compile(r"-|/dev/(stdin|fd/.*)|/proc/[^/]+/fd/.*")


class Source(msgspec.Struct, frozen=True):
    """An open file and its SHA-256, which names its batch. `stat` tells what a person named, `name` how."""

    file: BinaryIO
    digest: bytes
    size_bytes: int
    name: str
    stat: os.stat_result


@contextmanager
def open_source(path: Path, data: Path, lines_max: int | None = None) -> Iterator[Source]:
    """What is to be read, open from here on, so that it can't be gone later.

    A pipe, and what is packed with gzip, is copied into the data folder, where nothing of it stays. Raises UsageError
    when it can't be read, is empty, or has more than `lines_max` lines; BrokerError for what is no batch file.
    """
    name, file = _opened(path)
    with file:
        found = os.fstat(file.fileno())
        if sees_as_file(path) and stat.S_ISREG(found.st_mode) and not _is_packed(file, name):
            yield _looked_through(file, file, name, found, lines_max)
            return
        with _place_for_copy(data) as copy:
            yield _looked_through(file, copy, name, found, lines_max)


@contextmanager
def read_once(path: Path) -> Iterator[BinaryIO]:
    """The plain bytes, whatever is named, from beginning to end. Raises UsageError and BrokerError as `open_source`."""
    name, file = _opened(path)
    form = FileForm()
    with file:
        yield reader_of(_watched(unpacked(_pieces(file, name)), form, name))
        if form.is_blank:
            raise UsageError(f"{name} is empty: there is nothing to run")


def _watched(pieces: Iterator[bytes], form: FileForm, name: str) -> Iterator[bytes]:
    for piece in pieces:
        form.see(piece)
        if fault := form.fault:
            raise BrokerError(f"{name} {fault}")
        yield piece


def sees_as_file(path: Path) -> bool:
    """Whether it has a name of its own, and not one that stands for whatever a process has open."""
    return not _NAMELESS.fullmatch(str(path))


def default_output(source: Path) -> Path:
    """Beside the source: `prompts.jsonl` gives `prompts.output.jsonl`; here for what has no place of its own."""
    if not sees_as_file(source):
        return Path("stdin.output.jsonl")
    plain = source.with_suffix("") if source.suffix == ".gz" else source
    return plain.with_name(f"{plain.stem}.output.jsonl")


def _opened(path: Path) -> tuple[str, BufferedReader]:
    """How a sentence calls it, and the file."""
    is_standard = str(path) == _STANDARD_INPUT
    name = "standard input" if is_standard else str(path)
    try:
        return name, os.fdopen(os.dup(0), "rb") if is_standard else path.open("rb")
    except OSError as error:
        raise UsageError(f"can't read {name}: {reason_of(error)}") from None


def _is_packed(file: BinaryIO, name: str) -> bool:
    try:
        begun = file.read(len(_GZIP))
        file.seek(0)
    except OSError as error:
        raise UsageError(f"can't read {name}: {reason_of(error)}") from None
    return begun == _GZIP


@contextmanager
def _place_for_copy(data: Path) -> Iterator[BinaryIO]:
    """A file without a name: whatever ends this process takes it away. No folder is left of what is refused at once."""
    is_new = not data.exists()
    try:
        with _nameless(data) as copy:
            yield copy
    except BaseException:  # a signal may come as soon as the folder is there
        if is_new:
            with suppress(OSError):
                data.rmdir()
        raise


def _nameless(data: Path) -> BinaryIO:
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        return tempfile.TemporaryFile(dir=data)
    except OSError as error:
        raise UsageError(f"can't write in the data folder {data}: {reason_of(error)}") from None


def _looked_through(
    file: BufferedReader, kept: BinaryIO, name: str, found: os.stat_result, lines_max: int | None
) -> Source:
    """Read `file` once; where `kept` is another, it has the plain bytes then."""
    digest, size, form, count = sha256(), 0, FileForm(), LineCount()
    is_copied = kept is not file
    pieces = _pieces(file, name)
    for piece in unpacked(pieces) if is_copied else pieces:
        digest.update(piece)
        size += len(piece)
        form.see(piece)
        if lines_max is not None:
            count.see(piece)
        if is_copied:
            if size > UPLOAD_BYTES_MAX:
                raise UsageError(f"{name} is larger than {UPLOAD_BYTES_MAX:,} bytes, the limit of what is copied")
            _copy(piece, kept)
    if form.is_blank:
        raise UsageError(f"{name} is empty: there is nothing to run")
    if fault := form.fault:
        raise BrokerError(f"{name} {fault}")
    if lines_max is not None and count.lines > lines_max:
        raise UsageError(f"{name} has {count.lines:,} lines; the limit is {lines_max:,}")
    if is_copied:
        _copy(b"", kept)
    return Source(kept, digest.digest(), size, name, found)


def _copy(piece: bytes, kept: BinaryIO) -> None:
    try:
        kept.write(piece)
        if not piece:
            kept.flush()
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise BrokerError("the disk of the data folder is full: make room for a copy of the input") from None
        raise BrokerError(f"the input can't be copied into the data folder: {reason_of(error)}") from None


def _pieces(file: BufferedReader, name: str) -> Iterator[bytes]:
    try:
        # One read of the system at a time: in between, a signal is heard that came while a pipe had nothing more.
        while piece := file.read1(_PIECE_BYTES):
            yield piece
    except OSError as error:
        raise UsageError(f"can't read {name}: {reason_of(error)}") from None
