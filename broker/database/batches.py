"""Statements on batches: asked for, read, counted, finished.

Those for doors take the tenant first, and know no other's batches; the others are for the broker's own loops.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Update, bindparam, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from broker.database.connection import bulk_insert
from broker.database.tables import batch, batch_count, batch_refusal, tenant
from broker.domain.job import BatchStatus, RefusedLine

__all__ = [
    "BatchRecord",
    "Counts",
    "OpenTerms",
    "add_counts",
    "advance_reading",
    "create",
    "find",
    "find_latest",
    "get",
    "last_written",
    "newest",
    "open_terms",
    "progress",
    "progress_of",
    "progress_of_unfinished",
    "refuse_lines",
    "reopen",
    "request_cancel",
    "set_budget",
    "set_paths",
    "set_status",
    "spent_nano_usd",
    "unfinished",
]


class BatchRecord(msgspec.Struct, kw_only=True):
    """A row of `batch`."""

    batch_id: bytes
    tenant_id: str
    source_name: str
    source_digest: bytes
    source_bytes: int
    output_path: str | None
    error_path: str | None
    window_seconds: int
    deadline_us: int
    max_cost_nano_usd: int | None
    constraints: str
    created_us: int
    status: BatchStatus
    name: str | None = None
    read_lines: int = 0
    read_bytes: int = 0
    accepted_jobs: int = 0
    refused_lines: int = 0
    read_us: int | None = None
    cancel_requested_us: int | None = None
    finished_us: int | None = None

    @property
    def lines_in(self) -> int:
        """Lines that became a job or were refused; `read_lines` also counts the empty ones, which are neither."""
        return self.accepted_jobs + self.refused_lines


class Counts(msgspec.Struct, kw_only=True):
    """What one writer, or all of them, counted for a batch.

    `cost_nano_usd` is what is known; `unknown_nano_usd` is the most that it can have cost besides.
    """

    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    attempts: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano_usd: int = 0
    wasted_nano_usd: int = 0
    unknown_nano_usd: int = 0

    @property
    def at_most_nano_usd(self) -> int:
        """What budgets count: what it cost, with the bound of what nobody knows."""
        return self.cost_nano_usd + self.unknown_nano_usd

    @property
    def ended(self) -> int:
        """Jobs that have an outcome."""
        return self.succeeded + self.failed + self.cancelled + self.expired


class OpenTerms(msgspec.Struct, frozen=True):
    """A batch's budget, in nano-USD, where it has one; and whether it is to be cancelled."""

    batch_id: bytes
    max_cost_nano_usd: int | None
    cancel_requested: bool


def create(connection: Connection, record: BatchRecord) -> None:
    """Insert a batch; its tenant is made on first use."""
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(
        kind.insert(tenant).values(tenant_id=record.tenant_id, created_us=record.created_us).on_conflict_do_nothing()
    )
    bulk_insert(connection, batch, [tuple(getattr(record, column.name) for column in batch.columns)])


# Built once: putting a statement together costs more than running it.
_GET = select(batch).where(batch.c.batch_id == bindparam("of_batch"))
_OF_TENANT = _GET.where(batch.c.tenant_id == bindparam("of_tenant"))
_UNFINISHED = select(batch).where(batch.c.finished_us.is_(None)).order_by(batch.c.created_us)
_OPEN_TERMS = select(batch.c.batch_id, batch.c.max_cost_nano_usd, batch.c.cancel_requested_us.is_not(None)).where(
    batch.c.finished_us.is_(None),
    batch.c.max_cost_nano_usd.is_not(None) | batch.c.cancel_requested_us.is_not(None),
)
_PROGRESS = select(
    *(func.coalesce(func.sum(batch_count.c[name]), 0).label(name) for name in Counts.__struct_fields__)
).where(batch_count.c.batch_id == bindparam("of_batch"))
_PROGRESS_OF_EACH = (
    select(batch.c.batch_id, *(func.sum(batch_count.c[name]).label(name) for name in Counts.__struct_fields__))
    .join(batch_count, batch_count.c.batch_id == batch.c.batch_id)
    .group_by(batch.c.batch_id)
)
_PROGRESS_OF = _PROGRESS_OF_EACH.where(
    batch.c.tenant_id == bindparam("of_tenant"), batch.c.batch_id.in_(bindparam("batches", expanding=True))
)
_SPENT = (
    select(batch_count.c.batch_id, func.sum(batch_count.c.cost_nano_usd + batch_count.c.unknown_nano_usd))
    .where(batch_count.c.batch_id.in_(bindparam("batches", expanding=True)))
    .group_by(batch_count.c.batch_id)
)
_PROGRESS_OF_UNFINISHED = _PROGRESS_OF_EACH.where(batch.c.finished_us.is_(None))


def get(connection: Connection, batch_id: bytes) -> BatchRecord | None:
    """The batch of this id, whosever it is."""
    row = connection.execute(_GET, {"of_batch": batch_id}).one_or_none()
    return _record(row) if row else None


def find(connection: Connection, tenant_id: str, batch_id: bytes) -> BatchRecord | None:
    """The tenant's batch of this id; None for another's as for one that never was."""
    row = connection.execute(_OF_TENANT, {"of_batch": batch_id, "of_tenant": tenant_id}).one_or_none()
    return _record(row) if row else None


def find_latest(connection: Connection, tenant_id: str, source_digest: bytes) -> BatchRecord | None:
    """The newest batch of the tenant made from a source with this digest."""
    row = connection.execute(
        select(batch)
        .where(batch.c.tenant_id == tenant_id, batch.c.source_digest == source_digest)
        .order_by(batch.c.created_us.desc())
        .limit(1)
    ).one_or_none()
    return _record(row) if row else None


def last_written(connection: Connection, tenant_id: str, output_path: str) -> bytes | None:
    """The tenant's batch that was the last to write its replies to this path."""
    found: bytes | None = connection.execute(
        select(batch.c.batch_id)
        .where(batch.c.tenant_id == tenant_id, batch.c.output_path == output_path, batch.c.finished_us.is_not(None))
        .order_by(batch.c.finished_us.desc())
        .limit(1)
    ).scalar_one_or_none()
    return found


def unfinished(connection: Connection) -> list[BatchRecord]:
    """The batches that still have something to do, oldest first."""
    return [_record(row) for row in connection.execute(_UNFINISHED)]


def _record(row: Row[tuple[object, ...]]) -> BatchRecord:
    return msgspec.convert(row._mapping, BatchRecord)  # noqa: SLF001 (SQLAlchemy's public name for it)


def advance_reading(
    connection: Connection,
    batch_id: bytes,
    *,
    from_bytes: int,
    lines: int,
    bytes_read: int,
    accepted: int,
    refused: int,
    read_us: int | None,
) -> bool:
    """Add to how far intake has read, from `from_bytes` on; `read_us` says that this was the end of the source.

    False, and nothing is changed, where the batch doesn't stand there any more: it was cancelled, or another process
    reads it too. What was read must not be kept then.
    """
    status = BatchStatus.READING if read_us is None else BatchStatus.RUNNING
    moved = connection.execute(
        update(batch)
        .where(batch.c.batch_id == batch_id, batch.c.read_us.is_(None), batch.c.read_bytes == from_bytes)
        .values(
            read_lines=batch.c.read_lines + lines,
            read_bytes=batch.c.read_bytes + bytes_read,
            accepted_jobs=batch.c.accepted_jobs + accepted,
            refused_lines=batch.c.refused_lines + refused,
            read_us=read_us,
            status=status,
        )
    )
    return moved.rowcount == 1


def set_status(
    connection: Connection,
    batch_id: bytes,
    status: BatchStatus,
    *,
    leaving: Collection[BatchStatus],
    finished_us: int | None = None,
) -> bool:
    """Move a batch on that has one of the statuses `leaving`; False, and nothing is changed, where it has none."""
    moved = connection.execute(
        update(batch)
        .where(batch.c.batch_id == batch_id, batch.c.status.in_(sorted(leaving)))
        .values(status=status, finished_us=finished_us)
    )
    return moved.rowcount == 1


def reopen(connection: Connection, tenant_id: str, batch_id: bytes) -> None:
    """Have a finished batch's files written again."""
    connection.execute(_change(tenant_id, batch_id).values(status=BatchStatus.FINALIZING, finished_us=None))


def set_budget(connection: Connection, tenant_id: str, batch_id: bytes, max_cost_nano_usd: int) -> None:
    """Give an unfinished batch another budget."""
    connection.execute(_change(tenant_id, batch_id).values(max_cost_nano_usd=max_cost_nano_usd))


def set_paths(connection: Connection, tenant_id: str, batch_id: bytes, output_path: str, error_path: str) -> None:
    """Write a batch's files elsewhere."""
    connection.execute(_change(tenant_id, batch_id).values(output_path=output_path, error_path=error_path))


def _change(tenant_id: str, batch_id: bytes) -> Update:
    return update(batch).where(batch.c.tenant_id == tenant_id, batch.c.batch_id == batch_id)


def refuse_lines(connection: Connection, batch_id: bytes, lines: list[RefusedLine]) -> None:
    """Keep the lines that will not run, for the error file."""
    rows = [(batch_id, line.line_number, line.custom_id, line.code, line.message) for line in lines]
    bulk_insert(connection, batch_refusal, rows)


@lru_cache
def _add_counts(dialect: str) -> Any:  # noqa: ANN401 (each dialect has an Insert of its own)
    kind = postgresql if dialect == "postgresql" else sqlite
    statement = kind.insert(batch_count)
    return statement.on_conflict_do_update(
        index_elements=[batch_count.c.batch_id, batch_count.c.writer],
        set_={name: batch_count.c[name] + statement.excluded[name] for name in Counts.__struct_fields__},
    )


def add_counts(connection: Connection, batch_id: bytes, writer: str, counts: Counts) -> None:
    """Add one flush to the writer's counters, in the flush's own transaction."""
    values = {"batch_id": batch_id, "writer": writer, **msgspec.structs.asdict(counts)}
    connection.execute(_add_counts(connection.dialect.name), values)


def request_cancel(connection: Connection, tenant_id: str, batch_id: bytes, now_us: int) -> None:
    """Ask that all jobs of the batch that have not ended be cancelled; too late once its files are being written."""
    connection.execute(
        _change(tenant_id, batch_id)
        .where(
            batch.c.cancel_requested_us.is_(None),
            batch.c.status.in_([BatchStatus.READING, BatchStatus.RUNNING]),
        )
        .values(
            cancel_requested_us=now_us,
            status=BatchStatus.CANCELLING,
            read_us=func.coalesce(batch.c.read_us, now_us),  # what was not read yet need not be
        )
    )


def newest(connection: Connection, tenant_id: str, limit: int) -> list[BatchRecord]:
    """The tenant's batches, the newest first."""
    query = select(batch).where(batch.c.tenant_id == tenant_id).order_by(batch.c.created_us.desc()).limit(limit)
    return [_record(row) for row in connection.execute(query)]


def open_terms(connection: Connection) -> list[OpenTerms]:
    """What holds back unfinished batches; those that nothing holds back are left out."""
    rows = connection.execute(_OPEN_TERMS)
    return [OpenTerms(batch_id, budget, bool(cancelled)) for batch_id, budget, cancelled in rows]


def progress(connection: Connection, batch_id: bytes) -> Counts:
    """The sum over all writers."""
    row = connection.execute(_PROGRESS, {"of_batch": batch_id}).one()
    return Counts(**{name: int(value) for name, value in row._mapping.items()})  # noqa: SLF001 (as above)


def spent_nano_usd(connection: Connection, batch_ids: Collection[bytes]) -> dict[bytes, int]:
    """What these batches' attempts came to so far, at most, for each that had any."""
    rows = connection.execute(_SPENT, {"batches": list(batch_ids)})
    return {batch_id: int(cost) for batch_id, cost in rows}


def progress_of_unfinished(connection: Connection) -> dict[bytes, Counts]:
    """The same of all batches that still have something to do, in one statement."""
    return _counts_by_batch(connection.execute(_PROGRESS_OF_UNFINISHED))


def progress_of(connection: Connection, tenant_id: str, batch_ids: Sequence[bytes]) -> dict[bytes, Counts]:
    """The same of these batches of the tenant, in one statement; nothing where nothing is counted yet."""
    rows = connection.execute(_PROGRESS_OF, {"of_tenant": tenant_id, "batches": list(batch_ids)})
    return _counts_by_batch(rows)


def _counts_by_batch(rows: Iterable[Sequence[Any]]) -> dict[bytes, Counts]:
    names = Counts.__struct_fields__
    return {bytes(batch_id): Counts(**dict(zip(names, map(int, sums), strict=True))) for batch_id, *sums in rows}
