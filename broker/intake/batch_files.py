"""A batch file becomes durable jobs, read as a stream and committed piece by piece.

How far it has read is kept in the transaction that inserts the jobs, so that an interrupted reading goes on
where it stopped: no line is lost, none comes in twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import BinaryIO

import msgspec
import structlog

from broker.clock import Clock
from broker.database import batches, jobs
from broker.database.batches import BatchRecord
from broker.database.beginning_keys import BeginningKeys
from broker.database.connection import Connection, Database
from broker.domain.errors import BrokerError, ErrorCode
from broker.domain.identity import Identity
from broker.domain.ids import new_id
from broker.domain.job import AcceptedLine, BatchStatus, Constraints, GroupKey, RefusedLine
from broker.domain.lane import Lane
from broker.intake.batch_lines import Admission, Chunk, LineClass, read_chunk
from broker.rules.beginnings import by_beginning
from broker.rules.grouping import bucket_deadline_us, canonical_constraints
from broker.wakeups import Topic, Wakeups

__all__ = ["BatchFiles", "BatchRequest"]

_log = structlog.get_logger(__name__)


class BatchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a producer asks for with a file."""

    source_name: str
    source_digest: bytes
    source_bytes: int
    output_path: str
    error_path: str
    window_seconds: int
    max_cost_nano_usd: int | None
    constraints: Constraints
    name: str | None = None


class _OvertakenError(Exception):
    """The batch doesn't stand any more where the piece in hand begins."""


class BatchFiles:
    """Takes batches in."""

    def __init__(
        self,
        database: Database,
        models: Collection[str],
        clock: Clock,
        wakeups: Wakeups,
        lanes: Sequence[Lane],
    ) -> None:
        self._lanes = lanes
        self._beginning_keys = BeginningKeys()
        self._database = database
        self._models = models
        self._clock = clock
        self._wakeups = wakeups

    def create_batch(self, identity: Identity, request: BatchRequest) -> BatchRecord:
        """A new batch of the identity's tenant, durable, with nothing read yet."""
        now_us = self._clock()
        record = BatchRecord(
            batch_id=new_id(),
            tenant_id=identity.tenant,
            created_us=now_us,
            deadline_us=now_us + request.window_seconds * 1_000_000,
            status=BatchStatus.READING,
            constraints=canonical_constraints(request.constraints),
            **{name: getattr(request, name) for name in request.__struct_fields__ if name != "constraints"},
        )
        self._database.write(lambda connection: batches.create(connection, record))
        _log.info("batch_created", batch=record.batch_id.hex(), source_bytes=record.source_bytes)
        return record

    def read_batch(self, record: BatchRecord, source: BinaryIO) -> Iterator[BatchRecord]:
        """Read on from where the batch stands; yields it after each commit, the last time with all of it in.

        Where it was cancelled, or another process has read on meanwhile, the piece in hand is dropped, and it goes on
        from where the batch stands then.
        """
        source.seek(record.read_bytes)
        while record.read_us is None:
            chunk = read_chunk(source, record.read_lines, at_start=record.read_bytes == 0)
            try:
                record = self._take_in(record, chunk)
            except _OvertakenError:
                record = self._database.read(partial(_standing, batch_id=record.batch_id))
                source.seek(record.read_bytes)
                _log.info("reading_overtaken", batch=record.batch_id.hex())
            self._wakeups.notify(Topic.PLANNER, Topic.DISPATCHER, Topic.ASSEMBLER)
            yield record

    def _take_in(self, record: BatchRecord, chunk: Chunk) -> BatchRecord:
        admission = Admission(self._models, record.constraints, self._lanes)
        accepted: list[AcceptedLine] = []
        refused: list[RefusedLine] = []
        for line in chunk.lines:
            found = admission.admit(line)
            (accepted if isinstance(found, AcceptedLine) else refused).append(found)  # type: ignore[arg-type] # (the two lists' types differ as the values do)
        now_us = self._clock()
        read_us = now_us if chunk.at_end else None

        def work(connection: Connection, *, ask: bool) -> BatchRecord:
            names = [line.custom_id for line in accepted]
            taken = jobs.known_custom_ids(connection, record.batch_id, names) if ask else set()
            fresh, doubled = _without_doubles(accepted, taken)
            # First of all, for it waits for whoever else may be reading this batch, or cancelling it.
            if not batches.advance_reading(
                connection,
                record.batch_id,
                from_bytes=record.read_bytes,
                lines=chunk.count,
                bytes_read=chunk.bytes_read,
                accepted=len(fresh),
                refused=len(refused) + len(doubled),
                read_us=read_us,
            ):
                raise _OvertakenError
            self.insert(connection, record, fresh, admission.class_of, now_us)
            batches.refuse_lines(connection, record.batch_id, refused + doubled)
            return _standing(connection, record.batch_id)

        try:
            moved = self._database.write(lambda connection: work(connection, ask=False))
        except Exception as error:
            # Files whose lines share names are rare: asking of every line would cost more than the insert.
            if not jobs.are_names_taken(error):
                raise
            moved = self._database.write(lambda connection: work(connection, ask=True))
        _log.info("lines_taken_in", accepted=moved.accepted_jobs, refused=moved.refused_lines)
        return moved

    def insert(
        self,
        connection: Connection,
        record: BatchRecord,
        lines: Sequence[AcceptedLine],
        class_of: Callable[[AcceptedLine], LineClass],
        now_us: int,
    ) -> None:
        """A span for each group and class, those of its jobs that begin alike together."""
        by_span: dict[tuple[str, str, LineClass], list[AcceptedLine]] = defaultdict(list)
        for line in lines:
            by_span[line.endpoint, line.model, class_of(line)].append(line)
        bucket_us = bucket_deadline_us(record.deadline_us, record.created_us)
        beginning_key = self._beginning_keys.of(connection, record.tenant_id)
        spans = []
        for (endpoint, model, kind), members in by_span.items():
            key = GroupKey(record.tenant_id, endpoint, model, kind.constraints, bucket_us)
            spans.append(
                jobs.insert_span(
                    connection,
                    tenant_id=record.tenant_id,
                    group_id=jobs.ensure_group(connection, key, now_us),
                    batch_id=record.batch_id,
                    lines=by_beginning(members),
                    submitted_us=now_us,
                    deadline_us=record.deadline_us,
                    beginning_key=beginning_key,
                    now_us=now_us,
                )
            )
        jobs.wait(connection, spans)


def _standing(connection: Connection, batch_id: bytes) -> BatchRecord:
    record = batches.get(connection, batch_id)
    if record is None:
        raise BrokerError(f"batch {batch_id.hex()} is gone from the database")
    return record


def _without_doubles(lines: list[AcceptedLine], taken: set[str]) -> tuple[list[AcceptedLine], list[RefusedLine]]:
    """Of lines with the same name the first one stays, unless the name is `taken`."""
    taken = set(taken)
    fresh: list[AcceptedLine] = []
    doubled: list[RefusedLine] = []
    for line in lines:
        if line.custom_id in taken:
            message = "an earlier line has the same custom_id; the first one runs"
            doubled.append(RefusedLine(line.line_number, line.custom_id, ErrorCode.DUPLICATE_CUSTOM_ID, message))
        else:
            taken.add(line.custom_id)
            fresh.append(line)
    return fresh, doubled
