"""Column types that mean the same on SQLite and PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from sqlalchemy import BigInteger, Dialect, Integer, LargeBinary, MetaData, String
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeDecorator, TypeEngine

__all__ = ["BigCounter", "Digest", "Id", "ProducersName", "metadata", "without_nul"]

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


class Id(TypeDecorator[bytes]):
    """A UUIDv7, 16 bytes in Python: `uuid` on PostgreSQL, a 16-byte blob on SQLite."""

    impl = LargeBinary(16)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.UUID(as_uuid=True))
        return dialect.type_descriptor(LargeBinary(16))

    def bind_processor(self, dialect: Dialect) -> Callable[[bytes | None], Any] | None:
        """On SQLite none: the value is what it is, and there are many."""
        return _to_uuid if dialect.name == "postgresql" else None

    def result_processor(
        self,
        dialect: Dialect,
        coltype: object,  # noqa: ARG002 (SQLAlchemy's signature)
    ) -> Callable[[uuid.UUID | bytes | None], bytes | None] | None:
        """On PostgreSQL our own connections bring ids as bytes (`drivers.postgres.connections`), others as UUID."""
        return _from_uuid if dialect.name == "postgresql" else None


def _to_uuid(value: bytes | None) -> uuid.UUID | None:
    return None if value is None else uuid.UUID(bytes=value)


def _from_uuid(value: uuid.UUID | bytes | None) -> bytes | None:
    return value.bytes if isinstance(value, uuid.UUID) else value


Digest = LargeBinary(32)
"""A SHA-256 or keyed BLAKE2b digest."""

BigCounter = BigInteger().with_variant(Integer, "sqlite")
"""An int64; on SQLite spelled INTEGER, the only spelling that can be a row id."""


class ProducersName(String):
    """A name that a producer gives and asks by. It may not hold the character NUL: doors refuse it, and so do we."""


def without_nul(value: str) -> str:
    """Free text as both databases keep it: PostgreSQL's has no NUL, so U+FFFD is in its place."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
