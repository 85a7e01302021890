"""Checking seals: the tree over all streams' batches, its checkpoints, and those that were published elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any

import msgspec
from sqlalchemy import Connection, select

from broker.database.keys import all_keys
from broker.ledger.checkpoints import Checkpoint, verify_note
from broker.ledger.tables import ledger_batch, ledger_checkpoint, ledger_seal_leaf, ledger_stream
from broker.rules.growing_tree import GrowingTree
from broker.rules.merkle import leaf_hash

__all__ = ["Seals", "verify_seals"]

_ROWS_TOGETHER = 2_000
_FAULTS_MAX = 100  # of one kind: a tree that lost its first leaf has lost its place for all


class Seals(msgspec.Struct, frozen=True, kw_only=True):
    """What there was to check. `sealed_us` is the time of the newest checkpoint, None where there is none."""

    batches: int = 0
    checkpoints: int = 0
    published: int = 0
    sealed_us: int | None = None


def verify_seals(
    connection: Connection, published: Iterable[str], keys: Collection[bytes] | None
) -> tuple[Seals, list[str]]:
    """What was checked, and each fault in a sentence."""
    if keys is None:
        keys = [key.public_key for key in all_keys(connection) if key.role == "broker"]
    faults: list[str] = []
    stored = _stored(connection, keys, faults)
    elsewhere = list(_verified(published, keys, faults))
    roots: dict[int, set[bytes]] = defaultdict(set)
    for checkpoint in (*stored, *elsewhere):
        roots[checkpoint.tree_size].add(checkpoint.root)
    faults += [f"two checkpoints of {size:,} batches contradict each other" for size in roots if len(roots[size]) > 1]
    size = _verify_tree(connection, roots, faults)
    beyond = [one for one in roots if one > size]
    if beyond:
        faults.append(
            f"a checkpoint says that {max(beyond):,} batches were sealed, and {size:,} are here: the end was cut off"
        )
    known = {checkpoint.tree_size for checkpoint in stored}
    unknown = sum(1 for checkpoint in elsewhere if checkpoint.tree_size not in known)
    if unknown:
        faults.append(f"{unknown} published checkpoints are not in the database")
    times = [checkpoint.sealed_us for checkpoint in (*stored, *elsewhere)]
    seals = Seals(batches=size, checkpoints=len(stored), published=len(elsewhere), sealed_us=max(times, default=None))
    return seals, faults


def _stored(connection: Connection, keys: Collection[bytes], faults: list[str]) -> list[Checkpoint]:
    """The database's own checkpoints, as their notes say it."""
    found = []
    for row in connection.execute(select(ledger_checkpoint).order_by(ledger_checkpoint.c.tree_size)):
        if not isinstance(row.note, str):
            faults.append(f"the checkpoint of {row.tree_size:,} batches: its note is no text")
            continue
        try:
            said = verify_note(row.note, keys)
        except ValueError as error:
            faults.append(f"the checkpoint of {row.tree_size:,} batches: {error}")
            continue
        if (said.tree_size, said.root, said.sealed_us) != (row.tree_size, _hash(row.root), row.sealed_us):
            faults.append(f"the checkpoint of {row.tree_size:,} batches is not what its note says")
        found.append(said)
    return found


def _verified(notes: Iterable[str], keys: Collection[bytes], faults: list[str]) -> Iterable[Checkpoint]:
    for place, note in enumerate(notes, start=1):
        try:
            yield verify_note(note, keys)
        except ValueError as error:
            faults.append(f"published checkpoint {place}: {error}")


def _verify_tree(connection: Connection, roots: dict[int, set[bytes]], faults: list[str]) -> int:
    """Go through the sealed batches in their order; how many there are."""
    tree, expected, wrong = GrowingTree(), 0, 0
    next_numbers: dict[bytes, int] = defaultdict(int)
    slots = {row.stream_id: row.slot for row in connection.execute(select(ledger_stream))}
    for row in _leaves(connection):
        if type(row.batch_number) is not int or not isinstance(row.stream_id, bytes):
            faults.append(f"seal {row.tree_index:,} was changed: it names no batch")
            expected = row.tree_index + 1
            tree.add(leaf_hash(_hash(row.batch_hash)))
            continue
        name = slots.get(row.stream_id, row.stream_id.hex())
        said = []
        if row.tree_index != expected:
            said.append(f"seal {expected:,} is missing")
        if row.stream_id not in slots:
            said.append(f"seal {row.tree_index:,}: its stream {name} is gone")
        if row.batch_number != next_numbers[row.stream_id]:
            said.append(f"seal {row.tree_index:,}: batch {row.batch_number} of stream {name} is out of its turn")
        if row.present_hash is None:
            said.append(f"stream {name}, batch {row.batch_number}: it was sealed, and is gone")
        elif _hash(row.present_hash) != _hash(row.batch_hash):
            said.append(f"stream {name}, batch {row.batch_number}: it is not the one that was sealed")
        expected, next_numbers[row.stream_id] = row.tree_index + 1, row.batch_number + 1
        wrong += len(said)
        faults += said[: max(0, _FAULTS_MAX - wrong + len(said))]
        tree.add(leaf_hash(_hash(row.batch_hash)))
        if any(root != tree.root for root in roots.get(tree.size, ())):
            faults.append(f"the first {tree.size:,} sealed batches are not those that a checkpoint is of")
    if wrong > _FAULTS_MAX:
        faults.append(f"and {wrong - _FAULTS_MAX:,} more of the kind")
    return tree.size


def _hash(value: object) -> bytes:
    """A hash as it is kept; what isn't one, which SQLite would keep as well, is like none."""
    return bytes(value) if isinstance(value, bytes | memoryview) else b""


def _leaves(connection: Connection) -> Iterable[Any]:
    query = (
        select(ledger_seal_leaf, ledger_batch.c.batch_hash.label("present_hash"))
        .outerjoin(
            ledger_batch,
            (ledger_batch.c.stream_id == ledger_seal_leaf.c.stream_id)
            & (ledger_batch.c.batch_number == ledger_seal_leaf.c.batch_number),
        )
        .order_by(ledger_seal_leaf.c.tree_index)
    )
    return connection.execute(query.execution_options(yield_per=_ROWS_TOGETHER))
