"""Statements on replies: what producers on the bus asked to be told, kept until they were."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import Connection, delete, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from broker.database.tables import reply

__all__ = ["AskedReply", "any_waiting", "ask", "forget"]

_ROWS_TOGETHER = 500


class AskedReply(msgspec.Struct, frozen=True, kw_only=True):
    """A row of `reply`; `job_id` is None where there is no job, and `error_code` and `message` say why."""

    message_digest: bytes
    place: int
    tenant_id: str
    reply_to: str
    idempotency_key: str
    job_id: bytes | None = None
    error_code: str | None = None
    message: str | None = None


def ask(connection: Connection, asked: Sequence[AskedReply]) -> None:
    """Keep what is to be told; what is kept already stays."""
    if not asked:
        return
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(kind.insert(reply).on_conflict_do_nothing(), [msgspec.structs.asdict(one) for one in asked])


def forget(connection: Connection, told: Sequence[AskedReply]) -> None:
    """These were told."""
    for start in range(0, len(told), _ROWS_TOGETHER):
        keys = [(one.message_digest, one.place) for one in told[start : start + _ROWS_TOGETHER]]
        connection.execute(delete(reply).where(tuple_(reply.c.message_digest, reply.c.place).in_(keys)))


def any_waiting(connection: Connection) -> bool:
    """Whether anything is to be told, now or once a job has ended."""
    return connection.execute(select(reply.c.place).limit(1)).first() is not None
