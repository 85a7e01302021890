"""Statements on replies: what producers on the bus asked to be told, kept until they were."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, bindparam, delete, select

from broker.database.connection import bulk_insert
from broker.database.tables import reply

__all__ = ["AskedReply", "any_waiting", "ask", "forget"]

# One by one: a planner without fresh statistics would go through the table for many at once.
_FORGET = delete(reply).where(reply.c.message_digest == bindparam("of_digest"), reply.c.place == bindparam("at_place"))


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


def ask(connection: Connection, tenant_id: str, asked: Sequence[AskedReply]) -> None:
    """Keep what the tenant is to be told; what is kept already stays. Of two at once, the later runs again."""
    digests = {one.message_digest for one in asked}
    rows = connection.execute(
        select(reply.c.message_digest, reply.c.place).where(
            reply.c.message_digest.in_(digests), reply.c.tenant_id == tenant_id
        )
    )
    known = {(bytes(row.message_digest), row.place) for row in rows}
    astuple = msgspec.structs.astuple
    bulk_insert(connection, reply, [astuple(one) for one in asked if (one.message_digest, one.place) not in known])


def forget(connection: Connection, told: Sequence[AskedReply]) -> None:
    """These were told."""
    if told:
        connection.execute(_FORGET, [{"of_digest": one.message_digest, "at_place": one.place} for one in told])


def any_waiting(connection: Connection) -> bool:
    """Whether anything is to be told, now or once a job has ended."""
    return connection.execute(select(reply.c.place).limit(1)).first() is not None
