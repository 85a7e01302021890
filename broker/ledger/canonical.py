"""The canonical bytes of a ledger row, and the hash of a batch of them.

A row is `[table, value, value, …]` in MessagePack: the table's columns in their order, without `leaf`;
integers in their shortest form, text as UTF-8, ids and digests as bin, null as nil, flags as true and false
(also where SQLite keeps 1 and 0). The schema version is
itself a column, so that a later layout never reads as an earlier one. Anyone can recompute it from a
SELECT and any MessagePack library.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import msgspec

from broker.rules.merkle import leaf_hash

__all__ = ["FIRST_PREVIOUS_HASH", "SCHEMA_VERSION", "batch_bytes", "batch_hash", "row_bytes", "row_leaf"]

SCHEMA_VERSION = 1
FIRST_PREVIOUS_HASH = bytes(32)

_encode = msgspec.msgpack.Encoder().encode


def row_bytes(table: str, values: Sequence[Any]) -> bytes:
    """The canonical bytes of a row of `table` with these values, `leaf` left out."""
    return _encode([table, *values])


def row_leaf(table: str, values: Sequence[Any]) -> bytes:
    """Their leaf hash."""
    return leaf_hash(_encode([table, *values]))


def batch_bytes(
    stream_id: bytes,
    batch_number: int,
    first_seq: int,
    rows_count: int,
    sum_cost_nano_usd: int,
    merkle_root: bytes,
    previous_hash: bytes,
) -> bytes:
    """A batch's canonical bytes: the MessagePack array of these fields under the tag `batch`."""
    fields = ["batch", SCHEMA_VERSION, stream_id, batch_number, first_seq, rows_count, sum_cost_nano_usd]
    return _encode([*fields, merkle_root, previous_hash])


def batch_hash(
    stream_id: bytes,
    batch_number: int,
    first_seq: int,
    rows_count: int,
    sum_cost_nano_usd: int,
    merkle_root: bytes,
    previous_hash: bytes,
) -> bytes:
    """The link of a stream's chain: SHA-256 over the batch's canonical bytes."""
    return sha256(
        batch_bytes(stream_id, batch_number, first_seq, rows_count, sum_cost_nano_usd, merkle_root, previous_hash)
    ).digest()
