"""The tables of real capacity: which instances there were, and what is still to be told of those wanted."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, Integer, String, Table, UniqueConstraint

from broker.database.types import BigCounter, Id, metadata

__all__ = ["desired_change", "instance"]

# Every instance whose worker ever spoke, with what bills call it; kept, so that its hours can be asked for later.
instance = Table(
    "instance",
    metadata,
    Column("instance_id", Id, primary_key=True),
    Column("worker_id", String(128), nullable=False),
    Column("lane", String(128), nullable=False),
    Column("resource_id", String(512), nullable=False),  # the cloud's name of the machine, as its worker was told
    Column("slots", Integer, nullable=False),
    Column("state", String(16), nullable=False),  # domain.instance.InstanceState
    Column("started_us", BigInteger, nullable=False),
    Column("ready_us", BigInteger),
    Column("draining_us", BigInteger),
    Column("stopped_us", BigInteger),
    Column("last_seen_us", BigInteger, nullable=False),
    UniqueConstraint("worker_id"),
    # Not the time of its last word: a row that is spoken for every five seconds should change in place.
    Index("ix_instance_lane", "lane", "started_us"),
    Index(
        "ix_instance_open",
        "lane",
        sqlite_where=Column("stopped_us").is_(None),
        postgresql_where=Column("stopped_us").is_(None),
    ),
    postgresql_with={"fillfactor": 50},
)

# The newest change of what a lane should hold, until it was told on the jobs bus; one row to a lane at most.
desired_change = Table(
    "desired_change",
    metadata,
    Column("lane", String(128), primary_key=True),
    Column("desired", Integer, nullable=False),
    Column("ready", Integer, nullable=False),
    Column("generation", BigCounter, nullable=False),
    Column("changed_us", BigInteger, nullable=False),
)
