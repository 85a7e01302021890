"""Sealing: the batches of all streams become leaves of one tree, whose root is signed and published.

A leaf is the RFC 9162 leaf hash of a batch's hash, which covers its stream, its number and all before it. A stream is
sealed without gaps; one that no longer continues what was sealed of it is left as it is, and said.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import structlog
from sqlalchemy import Connection, Row, func, insert, select

from broker.database.connection import bulk_insert
from broker.database.fencing import alone
from broker.ledger.canonical import FIRST_PREVIOUS_HASH
from broker.ledger.checkpoints import Checkpoint, sign_checkpoint
from broker.ledger.tables import ledger_batch, ledger_checkpoint, ledger_seal_leaf, ledger_stream
from broker.rules.growing_tree import GrowingTree
from broker.rules.merkle import leaf_hash
from broker.signing import Signer

__all__ = ["BATCHES_PER_CHECKPOINT", "Sealed", "checkpoints_after", "grown_to", "seal"]

BATCHES_PER_CHECKPOINT = 10_000
_ROWS_TOGETHER = 5_000

_log = structlog.get_logger(__name__)


class Sealed(msgspec.Struct, frozen=True):
    """The tree as it is now, and the checkpoint that this came to; None where there was nothing new."""

    tree: GrowingTree
    checkpoint: Checkpoint | None


def seal(connection: Connection, tree: GrowingTree, signer: Signer, now_us: int) -> Sealed:
    """Append what is new to the tree, and sign its root. `tree` is made anew where another has sealed meanwhile."""
    alone(connection, "sealer")
    size = sealed_count(connection)
    tree = tree.copy() if tree.size == size else grown_to(connection, size)
    leaves: list[tuple[int, bytes, int, bytes]] = []
    for stream in connection.execute(select(ledger_stream).order_by(ledger_stream.c.slot)):
        room = BATCHES_PER_CHECKPOINT - len(leaves)
        for batch_number, batch_hash in _new_batches(connection, stream, room):
            leaves.append((size + len(leaves), stream.stream_id, batch_number, batch_hash))
            tree.add(leaf_hash(batch_hash))
    if not leaves:
        return Sealed(tree, None)
    bulk_insert(connection, ledger_seal_leaf, leaves)
    checkpoint = sign_checkpoint(signer, tree.size, tree.root, now_us)
    connection.execute(insert(ledger_checkpoint).values(msgspec.structs.asdict(checkpoint)))
    return Sealed(tree, checkpoint)


def sealed_count(connection: Connection) -> int:
    """How many batches are sealed."""
    last = connection.execute(select(func.max(ledger_seal_leaf.c.tree_index))).scalar_one()
    return 0 if last is None else int(last) + 1


def grown_to(connection: Connection, size: int) -> GrowingTree:
    """The tree over the first so many sealed batches; a smaller one where there are fewer."""
    tree = GrowingTree()
    rows = connection.execute(
        select(ledger_seal_leaf.c.batch_hash)
        .where(ledger_seal_leaf.c.tree_index < size)
        .order_by(ledger_seal_leaf.c.tree_index)
        .execution_options(yield_per=_ROWS_TOGETHER)
    )
    for row in rows:
        tree.add(leaf_hash(row.batch_hash))
    return tree


def checkpoints_after(connection: Connection, tree_size: int, limit: int) -> list[Checkpoint]:
    """The next ones above this size."""
    rows = connection.execute(
        select(ledger_checkpoint)
        .where(ledger_checkpoint.c.tree_size > tree_size)
        .order_by(ledger_checkpoint.c.tree_size)
        .limit(limit)
    )
    return [Checkpoint(row.tree_size, bytes(row.root), row.sealed_us, row.note) for row in rows]


def _new_batches(
    connection: Connection, stream: Row[tuple[bytes, str, int]], limit: int
) -> Iterator[tuple[int, bytes]]:
    """The stream's batches beyond the last that is sealed, for as long as each continues the one before it."""
    last = connection.execute(
        select(ledger_seal_leaf.c.batch_number, ledger_seal_leaf.c.batch_hash)
        .where(ledger_seal_leaf.c.stream_id == stream.stream_id)
        .order_by(ledger_seal_leaf.c.batch_number.desc())
        .limit(1)
    ).one_or_none()
    number, previous = (last.batch_number + 1, bytes(last.batch_hash)) if last else (0, FIRST_PREVIOUS_HASH)
    found = connection.execute(
        select(ledger_batch.c.batch_number, ledger_batch.c.previous_hash, ledger_batch.c.batch_hash)
        .where(ledger_batch.c.stream_id == stream.stream_id, ledger_batch.c.batch_number >= number)
        .order_by(ledger_batch.c.batch_number)
        .limit(limit)
    ).all()
    for row in found:
        if row.batch_number != number or bytes(row.previous_hash) != previous:
            _log.error("stream_does_not_continue", stream=stream.slot, batch=row.batch_number, sealed_to=number - 1)
            return
        number, previous = number + 1, bytes(row.batch_hash)
        yield row.batch_number, previous
