"""Statements on replies: what producers on the bus asked to be told, kept until they were."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, delete, select, tuple_

from broker.database.connection import bulk_insert
from broker.database.tables import reply

__all__ = ["AskedReply", "any_waiting", "ask", "forget"]

_ROWS_TOGETHER = 500


class AskedReply(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `reply`, in its order. `job_id` is None where there is no job; `error_code` and `message` say why."""

    message_digest: bytes
    place: int
    tenant_id: str
    reply_to: str
    idempotency_key: str
    job_id: bytes | None = None
    error_code: str | None = None
    message: str | None = None


def ask(connection: Connection, asked: Sequence[AskedReply]) -> None:
    """Keep what is to be told; what is kept already stays. Of two at once, the later runs again."""
    digests = {one.message_digest for one in asked}
    rows = connection.execute(select(reply.c.message_digest, reply.c.place).where(reply.c.message_digest.in_(digests)))
    known = {(bytes(row.message_digest), row.place) for row in rows}
    astuple = msgspec.structs.astuple
    bulk_insert(connection, reply, [astuple(one) for one in asked if (one.message_digest, one.place) not in known])


def forget(connection: Connection, told: Sequence[AskedReply]) -> None:
    """These were told."""
    for start in range(0, len(told), _ROWS_TOGETHER):
        keys = [(one.message_digest, one.place) for one in told[start : start + _ROWS_TOGETHER]]
        connection.execute(delete(reply).where(tuple_(reply.c.message_digest, reply.c.place).in_(keys)))


def any_waiting(connection: Connection) -> bool:
    """Whether anything is to be told, now or once a job has ended."""
    return connection.execute(select(reply.c.place).limit(1)).first() is not None
