"""A batch's output file and error file while they grow, line after line in the order of the input.

Each input line stands exactly once in one of the two. Both are written beside their final names and renamed when
complete, so a reader never sees half a file.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from heapq import merge
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

from broker.database.connection import Connection, Database
from broker.domain.errors import BrokerError
from broker.domain.job import RefusedLine
from broker.domain.outcome import Outcome
from broker.durable import sync_folder
from broker.ledger import results
from broker.ledger.results import EndedLine
from broker.rules.output import error_line, output_line, refusal_line

__all__ = ["Draft", "OutputFiles", "failure_of", "next_page_lines", "success_of"]

_LINES_PER_PAGE = 500  # of the first page
_LINES_PER_PAGE_MAX = 2_000
_PAGE_BYTES = 4_000_000

T = TypeVar("T")


class OutputFiles:
    """The two files of one batch. Whatever raises, call `discard` then."""

    def __init__(self, database: Database, batch_id: bytes, output_path: str, error_path: str) -> None:
        self.ended_count = 0
        """How many lines of ended jobs are written."""
        self._database = database
        self._batch_id = batch_id
        self._refused_count = 0
        self._after = 0
        self._page_lines = _LINES_PER_PAGE
        self._refused: deque[RefusedLine] = deque()
        self._refused_after = 0
        self._output, self._errors = Draft(Path(output_path)), Draft(Path(error_path))

    def advance(self) -> None:
        """Write the lines that are next, up to the first whose job has not ended. Raises OSError."""
        goes_on = True
        while goes_on:
            page, goes_on = self._read(results.ended_lines, self._after, self._page_lines)
            if page:
                self._write_page(page)

    def _write_page(self, page: list[EndedLine]) -> None:
        self._output.write(b"".join([success_of(line) for line in page if line.outcome is Outcome.SUCCEEDED]))
        failed = [line for line in page if line.outcome is not Outcome.SUCCEEDED]
        self._after = page[-1].line_number
        self._write_errors(merge(failed, self._refused_before(self._after), key=attrgetter("line_number")))
        self.ended_count += len(page)
        self._page_lines = next_page_lines(page)

    def finish(self, ended_jobs: int, refused_lines: int) -> None:
        """Write what is left and give both files their names.

        Raises OSError; BrokerError if there are not as many lines as the batch has.
        """
        self.advance()
        self._write_errors(self._refused_before(None))
        if (self.ended_count, self._refused_count) != (ended_jobs, refused_lines):
            raise BrokerError(
                f"batch {self._batch_id.hex()} has {ended_jobs:,} ended jobs and {refused_lines:,} refused lines, but"
                f" {self.ended_count:,} and {self._refused_count:,} were found: its files are not written"
            )
        self._output.keep()
        self._errors.keep()

    def discard(self) -> None:
        """Leave nothing of what has no final name yet."""
        self._output.discard()
        self._errors.discard()

    def _read(self, read: Callable[[Connection, bytes, int, int], T], after: int, limit: int) -> T:
        return self._database.read(lambda connection: read(connection, self._batch_id, after, limit))

    def _refused_before(self, line_number: int | None) -> Iterator[RefusedLine]:
        """The next refused lines, up to this number; they were stored no later than the jobs of later lines."""
        while True:
            while self._refused and (line_number is None or self._refused[0].line_number < line_number):
                yield self._refused.popleft()
            if self._refused or (line_number is not None and self._refused_after >= line_number):
                return
            page = self._read(results.refused_lines, self._refused_after, _LINES_PER_PAGE_MAX)
            self._refused.extend(page)
            if page:
                self._refused_after = page[-1].line_number
            elif line_number is None:
                return
            else:
                self._refused_after = line_number

    def _write_errors(self, lines: Iterable[EndedLine | RefusedLine]) -> None:
        for line in lines:
            if isinstance(line, EndedLine):
                self._errors.write(failure_of(line))
            else:
                refusal = refusal_line(self._batch_id, line.line_number, line.custom_id, line.code, line.message)
                self._errors.write(refusal)
                self._refused_count += 1


def next_page_lines(page: list[EndedLine]) -> int:
    """Each page is as long as the replies of the one before let it be."""
    mean_bytes = 1 + sum(len(line.body) for line in page) // len(page)
    return max(1, min(_LINES_PER_PAGE_MAX, _PAGE_BYTES // mean_bytes))


def success_of(line: EndedLine) -> bytes:
    """Its line in the output file."""
    return output_line(line.job_id, line.custom_id, line.status_code, line.request_id, line.body)


def failure_of(line: EndedLine) -> bytes:
    """Its line in the error file."""
    return error_line(
        line.job_id,
        line.custom_id,
        line.outcome,
        line.error_code,
        line.status_code,
        line.request_id,
        line.message,
        line.body,
    )


class Draft:
    """A file that takes its name only when it is complete and on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._draft = path.with_name(f".{path.name}.part")
        with _named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # A file of its own: another process, which led before, may still write to the one that is there.
            self._draft.unlink(missing_ok=True)
            self._file = self._draft.open("xb")
            self._identity = _identity(os.fstat(self._file.fileno()))

    def write(self, lines: bytes) -> None:
        """Add to it."""
        try:
            self._file.write(lines)
        except OSError as error:
            error.filename = str(self._path)
            raise

    def keep(self) -> None:
        """Complete it and give it its name."""
        with _named(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            if not self._is_ours():
                raise OSError(errno.ESTALE, "another process writes it too")
            self._draft.replace(self._path)
            sync_folder(self._path.parent)

    def discard(self) -> None:
        """Remove it, unless it has its name."""
        with suppress(OSError):  # a full disk takes what is still buffered no more now than before
            self._file.close()
        if self._is_ours():
            self._draft.unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        try:
            return _identity(self._draft.stat()) == self._identity
        except OSError:
            return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """An error names the file that was asked for, whatever its draft is called."""
    try:
        yield
    except OSError as error:
        if error.filename is None or Path(error.filename).parent == path.parent:
            error.filename = str(path)
        raise
