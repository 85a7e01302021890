"""Recompute the ledger's proof from its rows: leaves, Merkle roots, each stream's chain, and the seals over all."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator
from operator import attrgetter

import msgspec
from sqlalchemy import Connection, Table, select

from broker.ledger.canonical import FIRST_PREVIOUS_HASH, batch_hash, row_leaf
from broker.ledger.row_values import RowValues
from broker.ledger.seal_checks import Seals, verify_seals
from broker.ledger.tables import attempt, cost_entry, job_outcome, ledger_batch, ledger_stream
from broker.rules.merkle import merkle_root

__all__ = ["Verification", "verify"]


_ROWS_TOGETHER = 2_000
"""A ledger is larger than memory: its rows come piece by piece."""


class Verification(msgspec.Struct, kw_only=True):
    """What was checked, and every fault found, each in one sentence. No fault means: as it was written."""

    streams: int = 0
    batches: int = 0
    rows: int = 0
    cost_nano_usd: int = 0
    seals: Seals = Seals()
    faults: list[str] = []


class _Row(msgspec.Struct, frozen=True):
    """A ledger row as it is now. `leaf` is recomputed; `intact` says whether it is still the stored one."""

    seq: int
    table: str
    leaf: bytes
    intact: bool
    cost_nano_usd: int


class _Batch(msgspec.Struct, frozen=True):
    """A row of `ledger_batch`."""

    batch_number: int
    first_seq: int
    rows_count: int
    sum_cost_nano_usd: int
    merkle_root: bytes
    previous_hash: bytes
    batch_hash: bytes


def verify(
    connection: Connection, published: Iterable[str] = (), keys: Collection[bytes] | None = None
) -> Verification:
    """Check every row against its leaf, every batch against its rows, every stream against its chain and its seals.

    It finds any row edited, added or removed, and any batch removed but the last ones of a stream; those are found
    where they were sealed. `published` are the notes of checkpoints that were kept outside the database: with them
    it is found as well where the seals themselves were cut off or made anew. `keys` are the public keys that may have
    signed checkpoints; all that the database knows as the broker's where none are given.
    """
    found = Verification()
    for stream in connection.execute(select(ledger_stream).order_by(ledger_stream.c.slot)):
        found.streams += 1
        _verify_stream(connection, stream.stream_id, stream.slot, found)
    found.seals, faults = verify_seals(connection, published, keys)
    found.faults += faults
    return found


def _verify_stream(connection: Connection, stream_id: bytes, slot: str, found: Verification) -> None:
    rows = _Peekable(
        heapq.merge(
            *(_rows(connection, table, stream_id) for table in (attempt, job_outcome, cost_entry)),
            key=attrgetter("seq"),
        )
    )
    previous, number, seq = FIRST_PREVIOUS_HASH, 0, 0
    for record in _batches(connection, stream_id):
        end = record.first_seq + record.rows_count
        members = list(rows.take_below(end))
        where = f"stream {slot}, batch {record.batch_number}"
        found.faults += [
            f"{where}: row {row.seq} of {row.table} is not what was written" for row in members if not row.intact
        ]
        found.faults += [f"{where}: {fault}" for fault in _faults(stream_id, record, members, previous, number, seq)]
        previous, number, seq = record.batch_hash, record.batch_number + 1, end
        found.batches += 1
        found.rows += len(members)
        found.cost_nano_usd += sum(row.cost_nano_usd for row in members)
    stray = sum(1 for _ in rows.rest())
    if stray:
        found.faults.append(f"stream {slot}: {stray} rows belong to no batch")


def _faults(
    stream_id: bytes, record: _Batch, members: list[_Row], previous: bytes, number: int, seq: int
) -> Iterator[str]:
    if record.batch_number != number or record.first_seq != seq:
        yield f"batch {number} is missing before it"
    expected = list(range(record.first_seq, record.first_seq + record.rows_count))
    if [row.seq for row in members] != expected:
        yield f"it was written with {record.rows_count} rows, and now has {len(members)}"
    if record.previous_hash != previous:
        yield "it does not continue the batch before it"
    cost = sum(row.cost_nano_usd for row in members)
    root = merkle_root([row.leaf for row in members])
    if root != record.merkle_root or cost != record.sum_cost_nano_usd:
        yield "its rows are not those that it was sealed with"
    sealed = batch_hash(
        stream_id,
        record.batch_number,
        record.first_seq,
        record.rows_count,
        record.sum_cost_nano_usd,
        record.merkle_root,
        record.previous_hash,
    )
    if sealed != record.batch_hash:
        yield "its own record was changed"


def _batches(connection: Connection, stream_id: bytes) -> Iterator[_Batch]:
    columns = [ledger_batch.c[name] for name in _Batch.__struct_fields__]
    query = select(*columns).where(ledger_batch.c.stream_id == stream_id).order_by(ledger_batch.c.batch_number)
    for row in connection.execute(query.execution_options(yield_per=_ROWS_TOGETHER)):
        yield _Batch(*row)


def _rows(connection: Connection, table: Table, stream_id: bytes) -> Iterator[_Row]:
    names = list(table.c.keys())
    cost_place = names.index("cost_nano_usd") if "cost_nano_usd" in names else None
    seq_place = names.index("seq")
    reader = RowValues(connection, table)
    query = select(*reader.columns).where(table.c.stream_id == stream_id).order_by(table.c.seq)
    for row in connection.execute(query.execution_options(yield_per=_ROWS_TOGETHER)):
        values = reader.of(row)
        leaf = row_leaf(str(table.name), values[:-1])
        cost = values[cost_place] if cost_place is not None else 0
        yield _Row(values[seq_place], str(table.name), leaf, leaf == values[-1], cost)


class _Peekable:
    """Rows in order, handed out batch by batch."""

    def __init__(self, rows: Iterator[_Row]) -> None:
        self._rows = rows
        self._next = next(rows, None)

    def take_below(self, end: int) -> Iterator[_Row]:
        """The rows with a sequence below `end` that were not taken yet."""
        while self._next is not None and self._next.seq < end:
            row = self._next
            self._next = next(self._rows, None)
            yield row

    def rest(self) -> Iterator[_Row]:
        """What is left."""
        while self._next is not None:
            yield self._next
            self._next = next(self._rows, None)
