"""Assembler: a batch whose every line has ended becomes its output file and its error file.

Each input line stands exactly once in one of the two, in the order of the input. Both are written beside
their final names and renamed when complete, so a reader never sees half a file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self, TypeVar

import structlog

from broker.clock import Clock
from broker.database import batches
from broker.database.batches import BatchRecord
from broker.database.connection import Connection, Database
from broker.domain.errors import BrokerError
from broker.domain.job import BatchStatus, RefusedLine
from broker.domain.outcome import Outcome
from broker.ledger import results
from broker.ledger.results import EndedLine
from broker.rules.output import error_line, output_line, refusal_line

__all__ = ["Assembler"]

_LINES_PER_PAGE = 500  # of the first page
_LINES_PER_PAGE_MAX = 2_000
_PAGE_BYTES = 4_000_000

T = TypeVar("T", EndedLine, RefusedLine)

_log = structlog.get_logger(__name__)


class Assembler:
    """Finishes batches."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def step(self) -> list[BatchRecord]:
        """Finish the batches whose lines have all ended; returns those.

        Raises BrokerError if a file can't be written, when the other batches are done.
        """
        done: list[BatchRecord] = []
        failure: BrokerError | None = None
        for record in self._database.read(_complete_batches):
            try:
                self._finish(record)
            except BrokerError as error:
                failure = error
            else:
                done.append(record)
        if failure:
            raise failure
        return done

    def _finish(self, record: BatchRecord) -> None:
        record = self._database.write(lambda connection: _finalizing(connection, record.batch_id))
        self._write_files(record)
        self._set_status(record, _final_status(record), finished_us=self._clock())
        _log.info("batch_finished", batch=record.batch_id.hex(), output=record.output_path)

    def _set_status(self, record: BatchRecord, status: BatchStatus, finished_us: int | None = None) -> None:
        def work(connection: Connection) -> None:
            batches.set_status(connection, record.batch_id, status, finished_us=finished_us)

        self._database.write(work)

    def _write_files(self, record: BatchRecord) -> None:
        if record.output_path is None or record.error_path is None:
            return
        output, errors = Path(record.output_path), Path(record.error_path)
        try:
            with _Draft(output) as output_draft, _Draft(errors) as error_draft:
                for line in self._lines(record):
                    if isinstance(line, EndedLine) and line.outcome is Outcome.SUCCEEDED:
                        output_draft.write(_success(line))
                    else:
                        error_draft.write(_failure(record, line))
        except OSError as error:
            named = _named(error, output, errors)
            raise BrokerError(
                f"can't write {named}: {error.strerror}; results are kept: run again to write them"
            ) from error

    def _lines(self, record: BatchRecord) -> Iterator[EndedLine | RefusedLine]:
        """All lines in input order: two sorted streams, merged."""
        ended = self._pages(record.batch_id, results.ended_lines)
        refused = self._pages(record.batch_id, results.refused_lines)
        next_refused = next(refused, None)
        for line in ended:
            while next_refused is not None and next_refused.line_number < line.line_number:
                yield next_refused
                next_refused = next(refused, None)
            yield line
        if next_refused is not None:
            yield next_refused
            yield from refused

    def _pages(self, batch_id: bytes, read: Callable[[Connection, bytes, int, int], list[T]]) -> Iterator[T]:
        """Page after page, each as long as the replies of the one before let it be."""
        after, limit = 0, _LINES_PER_PAGE
        while page := self._database.read(lambda connection: read(connection, batch_id, after, limit)):  # noqa: B023 (called at once)
            yield from page
            after = page[-1].line_number
            mean_bytes = 1 + sum(len(line.body) for line in page if isinstance(line, EndedLine)) // len(page)
            limit = max(1, min(_LINES_PER_PAGE_MAX, _PAGE_BYTES // mean_bytes))


def _complete_batches(connection: Connection) -> list[BatchRecord]:
    return [
        record
        for record in batches.unfinished(connection)
        if record.read_us is not None and batches.progress(connection, record.batch_id).ended == record.accepted_jobs
    ]


def _finalizing(connection: Connection, batch_id: bytes) -> BatchRecord:
    """The batch as it is when its files begin to be written: a cancel comes before that, or too late."""
    batches.set_status(connection, batch_id, BatchStatus.FINALIZING)
    record = batches.get(connection, batch_id)
    if record is None:
        raise BrokerError(f"batch {batch_id.hex()} is gone from the database")
    return record


def _final_status(record: BatchRecord) -> BatchStatus:
    return BatchStatus.COMPLETED if record.cancel_requested_us is None else BatchStatus.CANCELLED


def _success(line: EndedLine) -> bytes:
    return output_line(line.job_id, line.custom_id, line.status_code, line.request_id, line.body)


def _failure(record: BatchRecord, line: EndedLine | RefusedLine) -> bytes:
    if isinstance(line, RefusedLine):
        return refusal_line(record.batch_id, line.line_number, line.custom_id, line.code, line.message)
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


def _named(error: OSError, output: Path, errors: Path) -> Path:
    """The file that was asked for, whatever its draft is called."""
    wanted = Path(error.filename) if error.filename else output
    return next((path for path in (output, errors) if wanted == _draft_of(path)), wanted)


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def _sync_folder(folder: Path) -> None:
    """Else a power cut could take the new name back."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Draft:
    """A file that takes its name only when it is complete and on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._draft = _draft_of(path)

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._draft.open("wb")
        return self

    def write(self, line: bytes) -> None:
        self._file.write(line)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        if kind is None:
            self._draft.replace(self._path)
            _sync_folder(self._path.parent)
        else:
            self._draft.unlink(missing_ok=True)
