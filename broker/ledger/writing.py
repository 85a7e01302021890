"""Appending to the ledger: rows, their leaves and the batch record that chains them, in one transaction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, bindparam, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from broker.database.connection import bulk_insert
from broker.database.types import without_nul
from broker.domain.ids import new_id
from broker.ledger.canonical import (
    FIRST_PREVIOUS_HASH,
    BatchRecord,
    batch_hash,
    composed_leaf,
    elements_of,
    leaf_head,
    row_leaf,
)
from broker.ledger.tables import attempt, cost_entry, job_outcome, ledger_batch, ledger_stream
from broker.ledger.versions import CURRENT, columns_of
from broker.rules.merkle import merkle_root

__all__ = [
    "AttemptRow",
    "CostEntryRow",
    "Flush",
    "OutcomeRow",
    "ShardFacts",
    "append",
    "ended_among",
    "ended_jobs",
    "open_stream",
]


class ShardFacts(NamedTuple):
    """What the attempts of one shard share: columns of `attempt`, in the table's order; first those of version 1.

    `price_digest` and `decision_digest` are of `broker.ledger.digests`.
    """

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
    resource_id: str | None
    zone: str | None
    endpoint: str
    claimed_us: int | None
    currency: str
    price_digest: bytes | None
    decision_digest: bytes | None


class AttemptRow(NamedTuple):
    """A row of `attempt` but for its proof columns; `shard` holds those that it shares, which stand in two places.

    First come the columns of version 1, from `due_us` on those that version 2 added. What nobody knows is None.
    """

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
    input_tokens: int | None
    cached_input_tokens: int | None
    output_tokens: int | None
    reasoning_tokens: int | None
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
    due_us: int
    first_token_us: int | None
    cache_write_tokens: int | None
    usage_basis: str
    tier_asked: str | None
    tier_served: str | None
    key_id: str | None
    tags: str | None
    charged_nano_usd: int


_SHARED_ADDED = ShardFacts._fields.index("resource_id")
_SHARD = AttemptRow._fields.index("shard")
_ADDED = AttemptRow._fields.index("due_us")
_ATTEMPT_HEAD = leaf_head(len(columns_of(attempt, CURRENT)))


class CostEntryRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `cost_entry` but for its proof columns, in the table's order; after `reason` what version 2 added."""

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
    resource_id: str | None = None
    region: str | None = None
    zone: str | None = None
    accelerator: str | None = None
    currency: str | None = None
    bill_line_digest: bytes | None = None


_ENTRY_ADDED = CostEntryRow.__struct_fields__.index("resource_id")


class OutcomeRow(msgspec.Struct, frozen=True, kw_only=True):
    """A job's end. `attempt_id` and `attempt_number` are None where it ended while waiting."""

    job_id: bytes
    tenant_id: str
    batch_id: bytes | None
    outcome: str
    error_code: str | None
    attempt_id: bytes | None
    attempt_number: int | None
    submission_digest: bytes | None


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

    def sealed_outcomes(self, outcomes: list[OutcomeRow], now_us: int) -> list[tuple[Any, ...]]:
        """The whole rows, with their leaves before what version 2 added."""
        rows = []
        for seq, row in enumerate(outcomes, start=self.next_seq):
            ended = (now_us, row.tenant_id, row.batch_id, row.outcome, row.error_code, row.attempt_id)
            values = (row.job_id, self.stream_id, seq, self.batch_number, CURRENT, *ended)
            leaf = row_leaf("job_outcome", (*values, row.attempt_number, row.submission_digest))
            self.leaves.append(leaf)
            rows.append((*values, leaf, row.attempt_number, row.submission_digest))
        self.next_seq += len(outcomes)
        return rows

    def sealed_entries(self, entries: list[CostEntryRow], now_us: int) -> list[tuple[Any, ...]]:
        """Likewise."""
        rows = []
        for seq, entry in enumerate(entries, start=self.next_seq):
            row = msgspec.structs.astuple(entry)
            values = (now_us, self.stream_id, seq, self.batch_number, CURRENT, *row[:_ENTRY_ADDED])
            leaf = row_leaf("cost_entry", (*values, *row[_ENTRY_ADDED:]))
            self.leaves.append(leaf)
            rows.append((*values, leaf, *row[_ENTRY_ADDED:]))
        self.next_seq += len(entries)
        return rows

    def sealed_attempts(self, attempts: list[AttemptRow], now_us: int) -> list[tuple[Any, ...]]:
        """Likewise, for many rows that differ in few columns: what a shard's attempts share is encoded once."""
        rows = []
        facts: ShardFacts | None = None
        shared: tuple[Any, ...] = ()
        shared_added: tuple[Any, ...] = ()
        elements = elements_added = elements_of(())
        place = ("attempt", now_us, self.stream_id)
        for seq, row in enumerate(attempts, start=self.next_seq):
            if row.shard is not facts:
                facts = row.shard
                shared, shared_added = facts[:_SHARED_ADDED], facts[_SHARED_ADDED:]
                elements, elements_added = elements_of(shared), elements_of(shared_added)
            head, values, added = row[:_SHARD], row[_SHARD + 1 : _ADDED], row[_ADDED:]
            parts = (*place, seq, self.batch_number, CURRENT, *head, elements, *values, elements_added, *added)
            leaf = composed_leaf(_ATTEMPT_HEAD, parts)
            self.leaves.append(leaf)
            rows.append((*parts[1:6], *head, *shared, *values, leaf, *shared_added, *added))
        self.next_seq += len(attempts)
        return rows


def open_stream(connection: Connection, slot: str, now_us: int) -> bytes:
    """The durable stream of this slot, made on first use. The caller holds the slot's lock."""
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(
        kind.insert(ledger_stream)
        .values(stream_id=new_id(), slot=slot, opened_us=now_us)
        .on_conflict_do_nothing(index_elements=[ledger_stream.c.slot])
    )
    return bytes(connection.execute(select(ledger_stream.c.stream_id).where(ledger_stream.c.slot == slot)).scalar_one())


_LISTED_AT_ONCE = 500
_ENDED = select(job_outcome.c.job_id).where(job_outcome.c.job_id.in_(bindparam("job_ids", expanding=True)))


def ended_jobs(connection: Connection, first_job_id: bytes, last_job_id: bytes) -> set[bytes]:
    """Which jobs between these ids (of one span) have an outcome."""
    return set(
        connection.execute(
            select(job_outcome.c.job_id).where(job_outcome.c.job_id.between(first_job_id, last_job_id))
        ).scalars()
    )


def ended_among(connection: Connection, job_ids: Iterable[bytes]) -> set[bytes]:
    """Which of these jobs have an outcome, five hundred to a statement."""
    asked = sorted(job_ids)
    ended: set[bytes] = set()
    for start in range(0, len(asked), _LISTED_AT_ONCE):
        ended.update(connection.execute(_ENDED, {"job_ids": asked[start : start + _LISTED_AT_ONCE]}).scalars())
    return ended


_SLOT = select(ledger_stream.c.slot).where(ledger_stream.c.stream_id == bindparam("of_stream"))
_HEAD = (
    select(ledger_batch, _SLOT.scalar_subquery().label("slot"))
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
    proof = _Proof(stream_id, head.batch_number + 1 if head else 0, first_seq)
    _insert_rows(connection, flush, proof, now_us)
    cost = sum(row.cost_nano_usd for row in flush.attempts) + sum(row.cost_nano_usd for row in flush.cost_entries)
    record = BatchRecord(
        schema_version=CURRENT,
        stream_id=stream_id,
        slot=head.slot if head else connection.execute(_SLOT, {"of_stream": stream_id}).scalar_one(),
        batch_number=proof.batch_number,
        first_seq=first_seq,
        rows_count=rows_count,
        sum_cost_nano_usd=cost,
        committed_us=now_us,
        merkle_root=merkle_root(proof.leaves),
        previous_hash=bytes(head.batch_hash) if head else FIRST_PREVIOUS_HASH,
    )
    row = msgspec.structs.asdict(record) | {"batch_hash": batch_hash(record)}
    del row["slot"]  # it is the stream's
    connection.execute(_SEAL, row)


def _storable(row: AttemptRow) -> AttemptRow:
    """What is hashed must be what is kept."""
    return row._replace(provider_request_id=without_nul(row.provider_request_id))


def _insert_rows(connection: Connection, flush: Flush, proof: _Proof, now_us: int) -> None:
    bulk_insert(connection, attempt, proof.sealed_attempts(flush.attempts, now_us))
    bulk_insert(connection, job_outcome, proof.sealed_outcomes(flush.outcomes, now_us))
    bulk_insert(connection, cost_entry, proof.sealed_entries(flush.cost_entries, now_us))
