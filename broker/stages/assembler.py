"""Assembler: a batch whose every line has ended becomes its output file and its error file.

While a large batch runs, the lines that have ended are written ahead, so that little is left to do at its end.
"""

from __future__ import annotations

import structlog

from broker.clock import Clock
from broker.database import batches, reruns
from broker.database.batches import BatchRecord, Counts
from broker.database.connection import Connection, Database
from broker.domain.errors import BrokerError
from broker.domain.job import BatchStatus
from broker.domain.rerun import Rerun
from broker.stages.merged_files import MergedFiles
from broker.stages.output_files import OutputFiles

__all__ = ["Assembler"]

_AHEAD_LINES = 4_000
"""So many more lines must have ended before the next look for those in order: what a few lanes have under way."""

_AHEAD_BATCHES_MAX = 16
_READ = {BatchStatus.RUNNING, BatchStatus.CANCELLING, BatchStatus.FINALIZING}
_NONE = Counts()

_log = structlog.get_logger(__name__)


class Assembler:
    """Finishes batches."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._ahead: dict[bytes, OutputFiles | MergedFiles] = {}
        self._looked_at: dict[bytes, int] = {}

    def step(self) -> list[BatchRecord]:
        """Finish the batches whose lines have all ended; returns those.

        Raises BrokerError if a file can't be written, when the other batches are done.
        """
        done: list[BatchRecord] = []
        failure: BrokerError | None = None
        open_batches = self._database.read(_open_batches)
        self._forget_all_but({record.batch_id for record, _ in open_batches})
        for record, ended_jobs in open_batches:
            if record.read_us is None or ended_jobs < record.accepted_jobs:
                self._write_ahead(record, ended_jobs)
                continue
            try:
                if self._finish(record):
                    done.append(record)
            except BrokerError as error:
                failure = error
        if failure:
            raise failure
        return done

    def _write_ahead(self, record: BatchRecord, ended_jobs: int) -> None:
        batch_id = record.batch_id
        if ended_jobs < self._looked_at.get(batch_id, 0) + _AHEAD_LINES:
            return
        self._looked_at[batch_id] = ended_jobs
        files = self._ahead.get(batch_id)
        try:
            if files is None and len(self._ahead) < _AHEAD_BATCHES_MAX:
                files = self._open(record)
            if files is not None:
                self._ahead[batch_id] = files
                files.advance()
        except OSError as error:  # the end will say so, if it is so then
            self._drop(batch_id)
            _log.info("files_not_written_ahead", batch=batch_id.hex(), reason=error.strerror)

    def _finish(self, record: BatchRecord) -> bool:
        """False where another process has finished it meanwhile."""
        begun = self._database.write(lambda connection: _finalizing(connection, record.batch_id))
        if begun is None:
            self._drop(record.batch_id)
            return False
        self._write_files(begun)

        def work(connection: Connection) -> bool:
            return batches.set_status(
                connection,
                begun.batch_id,
                _final_status(begun),
                leaving={BatchStatus.FINALIZING},
                finished_us=self._clock(),
            )

        finished = self._database.write(work)
        if finished:
            _log.info("batch_finished", batch=begun.batch_id.hex(), output=begun.output_path)
        return finished

    def _write_files(self, record: BatchRecord) -> None:
        batch_id = record.batch_id
        try:
            files = self._ahead.get(batch_id) or self._open(record)
            if files is not None:
                self._ahead[batch_id] = files
                files.finish(record.accepted_jobs, record.refused_lines)
        except OSError as error:
            raise BrokerError(
                f"can't write {error.filename}: {error.strerror}; results are kept: run again to write them"
            ) from error
        finally:
            self._drop(batch_id)

    def _open(self, record: BatchRecord) -> OutputFiles | MergedFiles | None:
        if record.output_path is None or record.error_path is None:
            return None
        if Rerun.parse(record.source_name):
            runs = self._database.read(lambda connection: reruns.chain(connection, record.tenant_id, record))
            ids = [run.batch_id for run in runs]
            return MergedFiles(self._database, ids, record.output_path, record.error_path)
        return OutputFiles(self._database, record.batch_id, record.output_path, record.error_path)

    def _drop(self, batch_id: bytes) -> None:
        if files := self._ahead.pop(batch_id, None):
            files.discard()

    def _forget_all_but(self, open_ids: set[bytes]) -> None:
        """Another process may have finished a batch that this one began to write."""
        for batch_id in [one for one in self._ahead if one not in open_ids]:
            self._drop(batch_id)
        self._looked_at = {one: looked for one, looked in self._looked_at.items() if one in open_ids}


def _open_batches(connection: Connection) -> list[tuple[BatchRecord, int]]:
    """Each with how many of its jobs have ended."""
    counts = batches.progress_of_unfinished(connection)
    return [(one, counts.get(one.batch_id, _NONE).ended) for one in batches.unfinished(connection)]


def _finalizing(connection: Connection, batch_id: bytes) -> BatchRecord | None:
    """The batch as it is when its files begin to be written: a cancel comes before that, or too late."""
    if not batches.set_status(connection, batch_id, BatchStatus.FINALIZING, leaving=_READ):
        return None
    return batches.get(connection, batch_id)


def _final_status(record: BatchRecord) -> BatchStatus:
    return BatchStatus.COMPLETED if record.cancel_requested_us is None else BatchStatus.CANCELLED
