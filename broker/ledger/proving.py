"""One job's proof: its ledger rows, and the way from each to a signed checkpoint, for whoever has no database.

What it holds is verified with SHA-256, Ed25519 and the broker's public key alone: `docs/ledger.md` has the program.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, select

from broker.domain.errors import BrokerError
from broker.domain.ids import format_id
from broker.ledger.canonical import BatchRecord, batch_bytes, row_bytes, row_leaf
from broker.ledger.row_values import RowAsWritten, RowValues
from broker.ledger.tables import (
    attempt,
    cost_entry,
    job_outcome,
    ledger_batch,
    ledger_checkpoint,
    ledger_seal_leaf,
    ledger_stream,
)
from broker.rules.merkle import inclusion_path, leaf_hash, merkle_root

__all__ = ["Proof", "RowProof", "prove_job"]

FORMAT = "inference-broker ledger proof 1"


class RowProof(msgspec.Struct, frozen=True, kw_only=True):
    """One row. Hashes and bytes are in hexadecimal; paths go from the leaf up (RFC 9162 section 2.1.3).

    `values` is what `row` holds, for people: by the names of the columns of the row's version. `batch` is what the
    batch's hash is of; it ends with the root of its rows and the hash of the batch before it.
    """

    table: str
    values: dict[str, Any]
    row: str
    row_index: int
    rows_count: int
    row_path: list[str]
    batch: str
    seal_index: int
    seal_path: list[str]


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """All rows of a job, oldest first, under one checkpoint."""

    format: str
    job: str
    rows: list[RowProof]
    checkpoint: str


def prove_job(connection: Connection, job_id: bytes) -> Proof:
    """The job's proof under the first checkpoint that covers all its rows. Raises BrokerError where there is none."""
    name = format_id("job", job_id)
    found = list(_rows_of(connection, job_id))
    if not found:
        raise BrokerError(f"the ledger has no row of {name}: nothing of it has ended")
    seals = [_seal_of(connection, row) for _, row, _ in found]
    checkpoint = connection.execute(
        select(ledger_checkpoint)
        .where(ledger_checkpoint.c.tree_size > max((seal or 0) for seal in seals))
        .order_by(ledger_checkpoint.c.tree_size)
        .limit(1)
    ).one_or_none()
    if checkpoint is None or None in seals:
        raise BrokerError(f"{name} is in the ledger, but not sealed yet: `broker ledger seal`, or wait for the sealer")
    tree = [
        leaf_hash(bytes(one))
        for one in connection.execute(
            select(ledger_seal_leaf.c.batch_hash)
            .where(ledger_seal_leaf.c.tree_index < checkpoint.tree_size)
            .order_by(ledger_seal_leaf.c.tree_index)
        ).scalars()
    ]
    rows = [
        _row_proof(connection, table, row, written, seal, tree)
        for (table, row, written), seal in zip(found, seals, strict=True)
        if seal is not None
    ]
    return Proof(format=FORMAT, job=name, rows=rows, checkpoint=checkpoint.note)


_Found = tuple[str, Row[Any], RowAsWritten]


def _rows_of(connection: Connection, job_id: bytes) -> Iterator[_Found]:
    """The job's rows, with their values as they were written."""
    for table in (attempt, job_outcome):
        reader = RowValues(connection, table)
        order = (table.c.recorded_us, table.c.seq)
        for row in connection.execute(select(*reader.columns).where(table.c.job_id == job_id).order_by(*order)):
            yield str(table.name), row, reader.of(row)


def _seal_of(connection: Connection, row: Row[Any]) -> int | None:
    """The place of its batch in the tree."""
    return connection.execute(
        select(ledger_seal_leaf.c.tree_index).where(
            ledger_seal_leaf.c.stream_id == row.stream_id, ledger_seal_leaf.c.batch_number == row.ledger_batch
        )
    ).scalar_one_or_none()


def _row_proof(
    connection: Connection, table: str, row: Row[Any], written: RowAsWritten, seal: int, tree: list[bytes]
) -> RowProof:
    batch = connection.execute(
        select(ledger_batch, ledger_stream.c.slot)
        .join(ledger_stream, ledger_stream.c.stream_id == ledger_batch.c.stream_id)
        .where(ledger_batch.c.stream_id == row.stream_id, ledger_batch.c.batch_number == row.ledger_batch)
    ).one()
    leaves = _leaves(connection, row)
    as_written = row_leaf(table, written.values) == written.leaf and merkle_root(leaves) == batch.merkle_root
    if not as_written or len(leaves) != batch.rows_count:
        raise BrokerError(
            f"row {row.seq} of {table}, or another of its batch, is not what was written, so nothing can be proven by"
            " it: `broker ledger verify` says more"
        )
    index = row.seq - batch.first_seq
    return RowProof(
        table=table,
        values=_readable(written),
        row=row_bytes(table, written.values).hex(),
        row_index=index,
        rows_count=len(leaves),
        row_path=[one.hex() for one in inclusion_path(leaves, index)],
        batch=batch_bytes(msgspec.convert(batch, BatchRecord, from_attributes=True)).hex(),
        seal_index=seal,
        seal_path=[one.hex() for one in inclusion_path(tree, seal)],
    )


def _leaves(connection: Connection, row: Row[Any]) -> list[bytes]:
    """Those of the row's batch, in their order."""
    found: list[tuple[int, bytes]] = []
    for table in (attempt, job_outcome, cost_entry):
        mine = (table.c.stream_id == row.stream_id, table.c.ledger_batch == row.ledger_batch)
        # A batch's rows were recorded at one time, which is what the large tables are looked up by.
        query = select(table.c.seq, table.c.leaf).where(table.c.recorded_us == row.recorded_us, *mine)
        # SQLite keeps any value in any column: what can't be a place or a leaf was none.
        found += [(seq, bytes(leaf)) for seq, leaf in connection.execute(query) if _is_leaf(seq, leaf)]
    return [leaf for _, leaf in sorted(found)]


def _is_leaf(seq: object, leaf: object) -> bool:
    return type(seq) is int and isinstance(leaf, bytes | memoryview)


def _readable(written: RowAsWritten) -> dict[str, Any]:
    """All but the leaf, by the columns' names."""
    named = zip(written.names, written.values, strict=True)
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in named}
