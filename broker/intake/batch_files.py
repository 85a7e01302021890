"""Intake: a batch file becomes durable jobs, read as a stream and committed piece by piece.

How far it has read is kept in the transaction that inserts the jobs, so that an interrupted reading goes on
where it stopped: no line is lost, none comes in twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import BinaryIO

import msgspec
import structlog

from broker.clock import Clock
from broker.database import batches, jobs
from broker.database.batches import BatchRecord
from broker.database.beginning_keys import BeginningKeys
from broker.database.connection import Connection, Database
from broker.domain.errors import ErrorCode, UsageError
from broker.domain.identity import Identity
from broker.domain.ids import new_id
from broker.domain.job import AcceptedLine, BatchStatus, Constraints, GroupKey, RefusedLine
from broker.domain.lane import Lane
from broker.rules.admission import admit_line
from broker.rules.beginnings import by_beginning
from broker.rules.grouping import bucket_deadline_us, canonical_constraints
from broker.rules.size_classes import size_class, size_limits
from broker.wakeups import Topic, Wakeups

__all__ = ["LINE_BYTES_MAX", "BatchRequest", "Intake"]

LINE_BYTES_MAX = 3_000_000
"""A line must fit a message of the smallest lane that could carry it; longer ones are refused, unread."""

_CHUNK_LINES = 2_000
_CHUNK_BYTES = 8_000_000
_BOM = b"\xef\xbb\xbf"

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


class _Chunk(msgspec.Struct):
    """Some lines of the source, and how many bytes they took there."""

    lines: list[tuple[int, bytes | None]] = []
    bytes_read: int = 0
    at_end: bool = False


class _Sizes:
    """What sizes the lanes carry that a batch's constraints allow, looked up once a model."""

    def __init__(self, constraints: str, lanes: Sequence[Lane]) -> None:
        self._constraints = constraints
        self._lanes = lanes
        self._limits: dict[str, tuple[int, ...]] = {}

    def check(self, line: AcceptedLine | RefusedLine) -> AcceptedLine | RefusedLine:
        """The line, unless no lane allowed could ever carry it."""
        if isinstance(line, RefusedLine):
            return line
        limits = self._limits_of(line)
        if not limits or len(line.body) <= limits[-1]:
            return line
        message = f"the body has {len(line.body):,} bytes; what the lanes allowed can carry is {limits[-1]:,} at most"
        return RefusedLine(line.line_number, line.custom_id, ErrorCode.LINE_TOO_LARGE, message)

    def class_of(self, line: AcceptedLine) -> int:
        """Lines of one class are carried by the same lanes."""
        return size_class(len(line.body), self._limits_of(line))

    def _limits_of(self, line: AcceptedLine) -> tuple[int, ...]:
        limits = self._limits.get(line.model)
        if limits is None:
            limits = self._limits[line.model] = size_limits(line.model, self._constraints, self._lanes)
        return limits


class Intake:
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
        """Read on from where the batch stands; yields it after each commit, the last time with all of it in."""
        source.seek(record.read_bytes)
        while record.read_us is None:
            chunk = _read_chunk(source, record.read_lines, at_start=record.read_bytes == 0)
            record = self._take_in(record, chunk)
            self._wakeups.notify(Topic.PLANNER, Topic.DISPATCHER, Topic.ASSEMBLER)
            yield record

    def _take_in(self, record: BatchRecord, chunk: _Chunk) -> BatchRecord:
        sizes = _Sizes(record.constraints, self._lanes)
        accepted, refused = self._admit(chunk, sizes)
        now_us = self._clock()
        read_us = now_us if chunk.at_end else None
        if chunk.at_end and record.read_lines + len(chunk.lines) == 0:
            raise UsageError(f"{record.source_name} has no lines: there is nothing to run")

        def work(connection: Connection, *, ask: bool) -> BatchRecord:
            names = [line.custom_id for line in accepted]
            taken = jobs.known_custom_ids(connection, record.batch_id, names) if ask else set()
            fresh, doubled = _without_doubles(accepted, taken)
            self.insert(connection, record, fresh, sizes.class_of, now_us)
            batches.refuse_lines(connection, record.batch_id, refused + doubled)
            batches.advance_reading(
                connection,
                record.batch_id,
                lines=len(chunk.lines),
                bytes_read=chunk.bytes_read,
                accepted=len(fresh),
                refused=len(refused) + len(doubled),
                read_us=read_us,
            )
            moved = batches.get(connection, record.batch_id)
            assert moved is not None  # noqa: S101 (the row was updated just above)
            return moved

        try:
            moved = self._database.write(lambda connection: work(connection, ask=False))
        except Exception as error:
            # Files whose lines share names are rare: asking of every line would cost more than the insert.
            if not jobs.are_names_taken(error):
                raise
            moved = self._database.write(lambda connection: work(connection, ask=True))
        _log.info("lines_taken_in", accepted=moved.accepted_jobs, refused=moved.refused_lines)
        return moved

    def _admit(self, chunk: _Chunk, sizes: _Sizes) -> tuple[list[AcceptedLine], list[RefusedLine]]:
        accepted: list[AcceptedLine] = []
        refused: list[RefusedLine] = []
        for number, line in chunk.lines:
            if line is None:
                message = f"the line is longer than {LINE_BYTES_MAX:,} bytes, the most that a lane's message carries"
                refused.append(RefusedLine(number, None, ErrorCode.LINE_TOO_LARGE, message))
            elif not line.strip():
                refused.append(RefusedLine(number, None, ErrorCode.INVALID_LINE, "the line is empty"))
            else:
                found = sizes.check(admit_line(number, line, self._models))
                (accepted if isinstance(found, AcceptedLine) else refused).append(found)  # type: ignore[arg-type] # (the two lists' types differ as the values do)
        return accepted, refused

    def insert(
        self,
        connection: Connection,
        record: BatchRecord,
        lines: Sequence[AcceptedLine],
        class_of: Callable[[AcceptedLine], int],
        now_us: int,
    ) -> None:
        """A span for each group and size class, those of its jobs that begin alike together."""
        by_span: dict[tuple[str, str, int], list[AcceptedLine]] = defaultdict(list)
        for line in lines:
            by_span[line.endpoint, line.model, class_of(line)].append(line)
        bucket_us = bucket_deadline_us(record.deadline_us, record.created_us)
        beginning_key = self._beginning_keys.of(connection, record.tenant_id)
        spans = []
        for (endpoint, model, _), members in by_span.items():
            key = GroupKey(record.tenant_id, endpoint, model, record.constraints, bucket_us)
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


def _read_chunk(source: BinaryIO, lines_before: int, *, at_start: bool) -> _Chunk:
    chunk = _Chunk()
    while len(chunk.lines) < _CHUNK_LINES and chunk.bytes_read < _CHUNK_BYTES:
        line = source.readline(LINE_BYTES_MAX + 1)
        if not line:
            chunk.at_end = True
            break
        chunk.bytes_read += len(line)
        too_long = len(line) > LINE_BYTES_MAX and not line.endswith(b"\n")
        while too_long and line and not line.endswith(b"\n"):
            line = source.readline(LINE_BYTES_MAX)
            chunk.bytes_read += len(line)
        number = lines_before + len(chunk.lines) + 1
        if at_start and number == 1:
            line = line.removeprefix(_BOM)
        chunk.lines.append((number, None if too_long else line.rstrip(b"\r\n")))
    return chunk
