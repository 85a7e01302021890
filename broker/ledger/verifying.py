"""Recompute the ledger's proof from its rows: leaves, Merkle roots, each stream's chain, and the seals over all."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator
from operator import attrgetter

import msgspec
from sqlalchemy import Connection, Table, select

from broker.ledger.canonical import FIRST_PREVIOUS_HASH, BatchRecord, batch_hash, row_leaf
from broker.ledger.price_checks import PricesNamed
from broker.ledger.row_values import RowAsWritten, RowValues
from broker.ledger.seal_checks import Seals, verify_seals
from broker.ledger.tables import attempt, cost_entry, job_outcome, ledger_batch, ledger_stream
from broker.ledger.versions import UnknownVersion
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
    """A ledger row as it is now. `leaf` is recomputed; `fault` says what is wrong with the row itself, if anything."""

    seq: int
    table: str
    leaf: bytes
    fault: str | None
    cost_nano_usd: int


class _Batch(BatchRecord, frozen=True, kw_only=True):
    """A row of `ledger_batch`, with its stream's slot."""

    batch_hash: bytes


def verify(
    connection: Connection, published: Iterable[str] = (), keys: Collection[bytes] | None = None
) -> Verification:
    """Check every row against its leaf, every batch against its rows, every stream against its chain and its seals.

    A row and a batch are read by their own version. Prices are checked against what attempts say of them.

    It finds any row edited, added or removed, and any batch removed but the last ones of a stream; those are found
    where they were sealed. `published` are the notes of checkpoints that were kept outside the database: with them
    it is found as well where the seals themselves were cut off or made anew. `keys` are the public keys that may have
    signed checkpoints; all that the database knows as the broker's where none are given.
    """
    found = Verification()
    prices = PricesNamed()
    for stream in connection.execute(select(ledger_stream).order_by(ledger_stream.c.slot)):
        found.streams += 1
        _verify_stream(connection, stream.stream_id, stream.slot, prices, found)
    found.faults += prices.faults(connection)
    found.seals, faults = verify_seals(connection, published, keys)
    found.faults += faults
    return found


def _verify_stream(
    connection: Connection, stream_id: bytes, slot: str, prices: PricesNamed, found: Verification
) -> None:
    rows = _Peekable(
        heapq.merge(
            *(
                _rows(connection, table, stream_id, prices, f"stream {slot}", found)
                for table in (attempt, job_outcome, cost_entry)
            ),
            key=attrgetter("seq"),
        )
    )
    previous, number, seq = FIRST_PREVIOUS_HASH, 0, 0
    for record in _batches(connection, stream_id):
        if not all(type(one) is int for one in (record.batch_number, record.first_seq, record.rows_count)):
            found.faults.append(f"stream {slot}: the record of a batch was changed: its numbers are none")
            continue
        end = record.first_seq + record.rows_count
        members = list(rows.take_below(end))
        where = f"stream {slot}, batch {record.batch_number}"
        found.faults += [f"{where}: row {row.seq} of {row.table} {row.fault}" for row in members if row.fault]
        found.faults += [f"{where}: {fault}" for fault in _faults(record, members, previous, number, seq)]
        previous, number, seq = record.batch_hash, record.batch_number + 1, end
        found.batches += 1
        found.rows += len(members)
        found.cost_nano_usd += sum(row.cost_nano_usd for row in members)
    stray = sum(1 for _ in rows.rest())
    if stray:
        found.faults.append(f"stream {slot}: {stray} rows belong to no batch")


def _faults(record: _Batch, members: list[_Row], previous: bytes, number: int, seq: int) -> Iterator[str]:
    if record.batch_number != number or record.first_seq != seq:
        yield f"batch {number} is missing before it"
    in_order = all(row.seq == seq for seq, row in enumerate(members, start=record.first_seq))
    if len(members) != record.rows_count or not in_order:
        yield f"it was written with {record.rows_count} rows, and now has {len(members)}"
    if record.previous_hash != previous:
        yield "it does not continue the batch before it"
    cost = sum(row.cost_nano_usd for row in members)
    root = merkle_root([row.leaf for row in members])
    if root != record.merkle_root or cost != record.sum_cost_nano_usd:
        yield "its rows are not those that it was sealed with"
    try:
        if batch_hash(record) != record.batch_hash:
            yield "its own record was changed"
    except UnknownVersion as error:
        yield str(error)


def _batches(connection: Connection, stream_id: bytes) -> Iterator[_Batch]:
    query = (
        select(ledger_batch, ledger_stream.c.slot)
        .join(ledger_stream, ledger_stream.c.stream_id == ledger_batch.c.stream_id)
        .where(ledger_batch.c.stream_id == stream_id)
        .order_by(ledger_batch.c.batch_number)
    )
    for row in connection.execute(query.execution_options(yield_per=_ROWS_TOGETHER)):
        yield _Batch(**row._mapping)  # noqa: SLF001 (SQLAlchemy's public name for it)


def _rows(
    connection: Connection, table: Table, stream_id: bytes, prices: PricesNamed, where: str, found: Verification
) -> Iterator[_Row]:
    """SQLite keeps any value in any column: what isn't even a number must not end the search for faults."""
    name = str(table.name)
    reader = RowValues(connection, table)
    query = select(*reader.columns).where(table.c.stream_id == stream_id).order_by(table.c.seq)
    for row in connection.execute(query.execution_options(yield_per=_ROWS_TOGETHER)):
        if type(row.seq) is not int:
            found.faults.append(f"{where}: a row of {name} is not what was written: it has no place in the stream")
            continue
        cost = 0 if table is job_outcome or type(row.cost_nano_usd) is not int else row.cost_nano_usd
        try:
            written = reader.of(row)
        except UnknownVersion as error:
            yield _Row(row.seq, name, row.leaf, f"can't be checked: {error}", cost)
            continue
        if table is attempt:
            prices.note(row.price_version, row.price_digest)
        leaf = row_leaf(name, written.values)
        yield _Row(row.seq, name, leaf, _row_fault(written, leaf), cost)


def _row_fault(written: RowAsWritten, leaf: bytes) -> str | None:
    return None if leaf == written.leaf and not written.has_more else "is not what was written"


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
