"""Appending to the ledger: rows, their leaves and the batch record that chains them, in one transaction."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, bindparam, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from broker.database.connection import bulk_insert
from broker.database.types import without_nul
from broker.domain.ids import new_id
from broker.ledger.canonical import FIRST_PREVIOUS_HASH, SCHEMA_VERSION, batch_hash, row_leaf
from broker.ledger.tables import attempt, cost_entry, job_outcome, ledger_batch, ledger_stream
from broker.rules.merkle import merkle_root

__all__ = [
    "AttemptRow",
    "CostEntryRow",
    "Flush",
    "OutcomeRow",
    "ShardFacts",
    "append",
    "attempts_ended_as",
    "ended_jobs",
    "open_stream",
]


class ShardFacts(NamedTuple):
    """What the attempts of one shard share: columns of `attempt`, in the table's order."""

    batch_id: bytes | None
    tenant_id: str
    shard_id: bytes
    assignment_id: bytes | None
    lane: str
    provider: str
    region: str
    accelerator: str
    accelerator_count: int
    market: str
    engine: str
    model: str
    worker_id: str
    stand_in: bool
    price_version: str
    dispatched_us: int


class AttemptRow(NamedTuple):
    """A row of `attempt` but for its proof columns; `shard` holds the columns between the two groups around it."""

    attempt_id: bytes
    job_id: bytes
    shard_index: int
    attempt_number: int
    shard: ShardFacts
    outcome: str
    error_code: str | None
    status_code: int
    decisive: bool
    submitted_us: int
    started_us: int | None
    ended_us: int
    queue_us: int
    run_us: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    accelerator_us: int
    list_cost_nano_usd: int
    cost_nano_usd: int
    cost_upper_nano_usd: int
    cost_basis: str
    request_digest: bytes | None
    reply_digest: bytes | None
    reply_bytes: int
    provider_request_id: str
    trace_id: bytes | None

    def columns(self) -> tuple[Any, ...]:
        """Its values in the table's order."""
        return (*self[:_SHARD_PLACE], *self.shard, *self[_SHARD_PLACE + 1 :])


_SHARD_PLACE = AttemptRow._fields.index("shard")


class CostEntryRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `cost_entry` but for its proof columns, in the table's order."""

    entry_id: bytes
    kind: str
    tenant_id: str | None
    batch_id: bytes | None
    attempt_id: bytes | None
    lane: str
    provider: str
    worker_id: str
    stand_in: bool
    period_start_us: int
    period_end_us: int
    accelerator_us: int
    price_version: str
    cost_nano_usd: int
    cost_basis: str
    reason: str


class OutcomeRow(msgspec.Struct, frozen=True, kw_only=True):
    """A job's end."""

    job_id: bytes
    tenant_id: str
    batch_id: bytes | None
    outcome: str
    error_code: str | None
    attempt_id: bytes | None


class Flush(msgspec.Struct):
    """What one transaction appends."""

    attempts: list[AttemptRow] = []
    outcomes: list[OutcomeRow] = []
    cost_entries: list[CostEntryRow] = []


class _Proof(msgspec.Struct):
    """Numbers the rows of one flush and collects their leaves."""

    stream_id: bytes
    batch_number: int
    next_seq: int
    leaves: list[bytes] = []

    def sealed(self, table: str, key: bytes | int, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """The whole row: its first column, the proof columns, the values after them, the leaf."""
        row = (key, self.stream_id, self.next_seq, self.batch_number, SCHEMA_VERSION, *values)
        self.next_seq += 1
        leaf = row_leaf(table, row)
        self.leaves.append(leaf)
        return (*row, leaf)


def open_stream(connection: Connection, slot: str, now_us: int) -> bytes:
    """The durable stream of this slot, made on first use. The caller holds the slot's lock."""
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(
        kind.insert(ledger_stream)
        .values(stream_id=new_id(), slot=slot, opened_us=now_us)
        .on_conflict_do_nothing(index_elements=[ledger_stream.c.slot])
    )
    return bytes(connection.execute(select(ledger_stream.c.stream_id).where(ledger_stream.c.slot == slot)).scalar_one())


def ended_jobs(connection: Connection, first_job_id: bytes, last_job_id: bytes) -> set[bytes]:
    """Which jobs between these ids (of one span) have an outcome."""
    return set(
        connection.execute(
            select(job_outcome.c.job_id).where(job_outcome.c.job_id.between(first_job_id, last_job_id))
        ).scalars()
    )


def attempts_ended_as(
    connection: Connection, first_job_id: bytes, last_job_id: bytes, error_code: str
) -> dict[bytes, int]:
    """How many attempts of the jobs between these ids (of one span) ended with this code, by job, where any did."""
    rows = connection.execute(
        select(attempt.c.job_id, func.count())
        .where(attempt.c.job_id.between(first_job_id, last_job_id), attempt.c.error_code == error_code)
        .group_by(attempt.c.job_id)
    )
    return {job_id: int(count) for job_id, count in rows}


_HEAD = (
    select(ledger_batch)
    .where(ledger_batch.c.stream_id == bindparam("of_stream"))
    .order_by(ledger_batch.c.batch_number.desc())
    .limit(1)
)
_SEAL = insert(ledger_batch)


def append(connection: Connection, stream_id: bytes, flush: Flush, now_us: int) -> None:
    """Append the flush as the stream's next batch.

    The stream's head is read within the transaction, so that a rolled-back flush leaves no gap.
    """
    if any("\0" in row.provider_request_id for row in flush.attempts):
        flush.attempts = [_storable(row) for row in flush.attempts]
    rows_count = len(flush.attempts) + len(flush.outcomes) + len(flush.cost_entries)
    if rows_count == 0:
        return
    head = connection.execute(_HEAD, {"of_stream": stream_id}).one_or_none()
    first_seq = head.first_seq + head.rows_count if head else 0
    previous = head.batch_hash if head else FIRST_PREVIOUS_HASH
    proof = _Proof(stream_id, head.batch_number + 1 if head else 0, first_seq)
    _insert_rows(connection, flush, proof, now_us)
    cost = sum(row.cost_nano_usd for row in flush.attempts) + sum(row.cost_nano_usd for row in flush.cost_entries)
    root = merkle_root(proof.leaves)
    sealed = batch_hash(stream_id, proof.batch_number, first_seq, rows_count, cost, root, previous)
    connection.execute(
        _SEAL,
        {
            "stream_id": stream_id,
            "batch_number": proof.batch_number,
            "schema_version": SCHEMA_VERSION,
            "first_seq": first_seq,
            "rows_count": rows_count,
            "sum_cost_nano_usd": cost,
            "merkle_root": root,
            "previous_hash": previous,
            "batch_hash": sealed,
            "committed_us": now_us,
        },
    )


def _storable(row: AttemptRow) -> AttemptRow:
    """What is hashed must be what is kept."""
    return row._replace(provider_request_id=without_nul(row.provider_request_id))


def _insert_rows(connection: Connection, flush: Flush, proof: _Proof, now_us: int) -> None:
    astuple = msgspec.structs.astuple
    bulk_insert(
        connection,
        attempt,
        [proof.sealed("attempt", now_us, row.columns()) for row in flush.attempts],
    )
    bulk_insert(
        connection,
        job_outcome,
        [
            proof.sealed(
                "job_outcome",
                row.job_id,
                (now_us, row.tenant_id, row.batch_id, row.outcome, row.error_code, row.attempt_id),
            )
            for row in flush.outcomes
        ],
    )
    bulk_insert(
        connection,
        cost_entry,
        [proof.sealed("cost_entry", now_us, astuple(row)) for row in flush.cost_entries],
    )
