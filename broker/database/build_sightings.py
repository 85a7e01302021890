"""Which builds of the broker work on a database, so that nothing is removed that one of them needs."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import BigInteger, Column, Connection, String, Table, func, select
from sqlalchemy.dialects import postgresql

from broker.database.types import metadata

__all__ = ["Sighting", "build_seen", "note_build", "seen_within"]

# One row to a build, whose processes each note it once a minute; on PostgreSQL alone.
build_seen = Table(
    "build_seen",
    metadata,
    Column("revision", String(32), primary_key=True),  # of the schema that the build needs
    Column("seen_us", BigInteger, nullable=False),
)


class Sighting(NamedTuple):
    """A build, and how long ago one of its processes was there."""

    revision: str
    seconds_ago: float


def note_build(connection: Connection, revision: str, now_us: int) -> None:
    """A process of the build that needs this schema is there. On PostgreSQL alone."""
    fresh = postgresql.insert(build_seen).values(revision=revision, seen_us=now_us)
    later = func.greatest(build_seen.c.seen_us, fresh.excluded.seen_us)
    connection.execute(fresh.on_conflict_do_update(index_elements=[build_seen.c.revision], set_={"seen_us": later}))


def seen_within(connection: Connection, seconds: float) -> list[Sighting]:
    """The builds that were there in the last `seconds`, by the database's clock. On PostgreSQL alone."""
    ago = func.extract("epoch", func.clock_timestamp()) - build_seen.c.seen_us / 1_000_000.0
    rows = connection.execute(select(build_seen.c.revision, ago).where(ago <= seconds).order_by(build_seen.c.revision))
    return [Sighting(revision, float(seconds_ago)) for revision, seconds_ago in rows]
