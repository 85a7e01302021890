"""Statements on public keys; the private ones never come near the database."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, select, update
from sqlalchemy.dialects import postgresql, sqlite

from broker.database.tables import signing_key

__all__ = ["StoredKey", "all_keys", "remember_key", "revoke"]


def remember_key(connection: Connection, *, key_id: str, role: str, owner: str, public_key: bytes, now_us: int) -> None:
    """Keep a public key, so that what it signed can be verified later; known keys stay as they are."""
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(
        kind.insert(signing_key)
        .values(key_id=key_id, role=role, owner=owner, public_key=public_key, created_us=now_us)
        .on_conflict_do_nothing(index_elements=[signing_key.c.key_id])
    )


class StoredKey(msgspec.Struct, frozen=True):
    """A public key; `owner`: a lane's name, a tenant, or the broker."""

    key_id: str
    role: str
    owner: str
    public_key: bytes
    created_us: int
    revoked_us: int | None


def all_keys(connection: Connection) -> list[StoredKey]:
    """Every key there ever was, oldest first."""
    rows = connection.execute(select(signing_key).order_by(signing_key.c.created_us, signing_key.c.key_id))
    return [
        StoredKey(row.key_id, row.role, row.owner, bytes(row.public_key), row.created_us, row.revoked_us)
        for row in rows
    ]


def revoke(connection: Connection, key_id: str, now_us: int) -> bool:
    """From now on nothing that this key signs is accepted; False when there is no such key, or it was revoked."""
    changed = connection.execute(
        update(signing_key)
        .where(signing_key.c.key_id == key_id, signing_key.c.revoked_us.is_(None))
        .values(revoked_us=now_us)
    )
    return changed.rowcount == 1
