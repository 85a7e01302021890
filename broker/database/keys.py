"""Statements on public keys; the private ones never come near the database."""

from __future__ import annotations

from sqlalchemy import Connection
from sqlalchemy.dialects import postgresql, sqlite

from broker.database.tables import signing_key

__all__ = ["remember_key"]


def remember_key(connection: Connection, *, key_id: str, role: str, owner: str, public_key: bytes, now_us: int) -> None:
    """Keep a public key, so that what it signed can be verified later; known keys stay as they are."""
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(
        kind.insert(signing_key)
        .values(key_id=key_id, role=role, owner=owner, public_key=public_key, created_us=now_us)
        .on_conflict_do_nothing(index_elements=[signing_key.c.key_id])
    )
