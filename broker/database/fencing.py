"""Inside a transaction: no two of one role at work at once, however many processes there are."""

from __future__ import annotations

from hashlib import sha256

from sqlalchemy import Connection, text

__all__ = ["alone", "lock_number"]

_FENCE = text("SELECT pg_advisory_xact_lock(:number)")


def alone(connection: Connection, role: str) -> None:
    """From here to the end of this transaction no other of this role works; waits for one that does.

    The first statement of a unit of work, so that all it reads is from after the others' commits. Does nothing
    on SQLite, which has one writer.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(_FENCE, {"number": lock_number("alone", role)})


def lock_number(kind: str, name: str) -> int:
    """The advisory lock of this name: 64 bits, signed, as PostgreSQL wants it."""
    return int.from_bytes(sha256(f"broker {kind} {name}".encode()).digest()[:8], signed=True)
