"""The canonical bytes of a ledger row, and the hash of a batch of them.

A row is `[table, value, value, …]` in MessagePack: the columns of the row's own version (`broker.ledger.versions`) in
their order, without `leaf`; integers in their shortest form, text as UTF-8, ids and digests as bin, null as nil, flags
as true and false (also where SQLite keeps 1 and 0). The schema version is itself a column, so that a later layout never
reads as an earlier one. Anyone can recompute it from a SELECT and any MessagePack library.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import msgspec

from broker.ledger.versions import UnknownVersion
from broker.rules.merkle import leaf_hash

__all__ = [
    "FIRST_PREVIOUS_HASH",
    "BatchRecord",
    "Elements",
    "batch_bytes",
    "batch_hash",
    "composed_leaf",
    "elements_of",
    "leaf_head",
    "row_bytes",
    "row_leaf",
]

FIRST_PREVIOUS_HASH = bytes(32)

_encode = msgspec.msgpack.Encoder().encode
_SHORT_ARRAY = 16
_HEAD_BYTES = 3
"""How long the head of an array is from so many elements on: 0xdc and their number. Below it is one byte."""


class BatchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the hash of a batch is of. Version 1 leaves `slot` and `committed_us` out."""

    schema_version: int
    stream_id: bytes
    slot: str
    batch_number: int
    first_seq: int
    rows_count: int
    sum_cost_nano_usd: int
    committed_us: int
    merkle_root: bytes
    previous_hash: bytes


def row_bytes(table: str, values: Sequence[Any]) -> bytes:
    """The canonical bytes of a row of `table` with these values, those of `columns_of` its version."""
    return _encode([table, *values])


def row_leaf(table: str, values: Sequence[Any]) -> bytes:
    """Their leaf hash."""
    return leaf_hash(_encode([table, *values]))


Elements = msgspec.Raw
"""Some elements of a row, encoded once for many rows: the arrays of MessagePack have no end, only a head."""


def elements_of(values: Sequence[Any]) -> Elements:
    """These values as a part of a longer row."""
    return Elements(_encode([*values])[1 if len(values) < _SHORT_ARRAY else _HEAD_BYTES :])


def leaf_head(values_count: int) -> bytes:
    """What the leaf hash of a row with so many values, its table's name left out, begins with; at least 15 of them."""
    return b"\x00\xdc" + (values_count + 1).to_bytes(2)


def composed_leaf(head: bytes, parts: Sequence[Any]) -> bytes:
    """The leaf hash of a row whose table's name and values are `parts`, at least 16 of them; `Elements` are several."""
    return sha256(head + _encode(parts)[_HEAD_BYTES:]).digest()


def batch_bytes(record: BatchRecord) -> bytes:
    """A batch's canonical bytes: the MessagePack array of these fields under the tag `batch`.

    Every version ends with the root and the hash of the batch before. Raises UnknownVersion.
    """
    head = ["batch", record.schema_version, record.stream_id]
    match record.schema_version:
        case 1:
            head += [record.batch_number, record.first_seq, record.rows_count, record.sum_cost_nano_usd]
        case 2:
            head += [record.slot, record.batch_number, record.first_seq, record.rows_count]
            head += [record.sum_cost_nano_usd, record.committed_us]
        case _:
            raise UnknownVersion(record.schema_version)
    return _encode([*head, record.merkle_root, record.previous_hash])


def batch_hash(record: BatchRecord) -> bytes:
    """The link of a stream's chain: SHA-256 over the batch's canonical bytes. Raises UnknownVersion."""
    return sha256(batch_bytes(record)).digest()
