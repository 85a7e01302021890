"""Digests that tie a ledger row to what it was decided and priced by, and to what was asked.

Each is the SHA-256 of a MessagePack array under a tag of its own. What they are of lies in tables that may be pruned:
whoever kept a copy can show that it is the one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from hashlib import sha256
from typing import Any, Protocol

import msgspec
from sqlalchemy import Connection, Row, select

from broker.database.planning_tables import assignment
from broker.domain.lane import Price

__all__ = ["Decisions", "decision_digest", "price_digest", "submission_digest"]

_encode = msgspec.msgpack.Encoder().encode
_KNOWN_MAX = 10_000

PRICE_FIELDS = (
    "version",
    "meter",
    "instance_hour_pico_usd",
    "input_token_pico_usd",
    "output_token_pico_usd",
    "cached_input_token_pico_usd",
    "cache_write_token_pico_usd",
    "sku",
    "billing_account",
    "valid_from_us",
    "valid_until_us",
    "source",
    "as_of",
)
"""What the digest of a price is of: all of its row but for the lane, which the attempt names, and when it came."""


def price_digest(price: Price | Row[Any]) -> bytes:
    """Of all that a price says, or its row."""
    return sha256(_encode(["price", *(getattr(price, name) for name in PRICE_FIELDS)])).digest()


def decision_digest(assignment_digest: bytes | None, lane: str, reason: str) -> bytes:
    """Of why a shard's jobs ran where they ran: the planner's assignment, the lane that was taken, and the reason.

    `assignment_digest` is of the assignment's columns in their order: its id, generation, group, the candidates in
    merit order with their expected costs, and the lanes removed with their filters. None where there was none.
    """
    return sha256(_encode(["decision", assignment_digest, lane, reason])).digest()


def submission_digest(
    job: Sequence[Any], tenant_id: str, batch_id: bytes | None, endpoint: str, model: str, constraints: str
) -> bytes:
    """Of what was asked: whose job, its columns of `broker.ledger.submitted` in their order, its group's terms."""
    return sha256(_encode(("job", tenant_id, batch_id, *job, endpoint, model, constraints))).digest()


class Decided(Protocol):
    """What a decision led to: a shard, or a row that has these columns of it."""

    @property
    def assignment_id(self) -> bytes | None:
        """The planner's part of it."""

    @property
    def lane(self) -> str:
        """The lane that was taken."""

    @property
    def reason(self) -> str:
        """Why, in words."""


class Decisions:
    """The decisions' digests, by shard. An assignment never changes, so each is read once."""

    def __init__(self) -> None:
        self._assignments: dict[bytes, bytes] = {}

    def look(self, connection: Connection, records: Collection[Decided]) -> None:
        """Read the assignments of these shards, together, where they aren't known."""
        asked = {record.assignment_id for record in records if record.assignment_id} - self._assignments.keys()
        if not asked:
            return
        if len(self._assignments) > _KNOWN_MAX:
            self._assignments.clear()
        for row in connection.execute(select(assignment).where(assignment.c.assignment_id.in_(sorted(asked)))):
            self._assignments[row.assignment_id] = sha256(_encode(["assignment", *row])).digest()

    def of(self, connection: Connection, record: Decided) -> bytes | None:
        """Of the decision that this shard was cut by; None where its assignment is gone."""
        if record.assignment_id is None:
            return decision_digest(None, record.lane, record.reason)
        self.look(connection, [record])
        found = self._assignments.get(record.assignment_id)
        return None if found is None else decision_digest(found, record.lane, record.reason)
