"""Which builds a schema serves, which builds were seen, and the indexes that waiting spans lacked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from broker.database.schema import VERSION_TABLE
from migrations.online import OnlineIndex, create_on_sqlite

__all__ = ["down_revision", "downgrade", "oldest_served", "online_indexes", "revision", "upgrade"]

revision = "0010"
down_revision = "0009"

oldest_served = "0007"
"""All since then only added."""

online_indexes = (
    OnlineIndex("ix_ready_batch", "ready", ["batch_id"]),
    OnlineIndex("ix_ready_due", "ready", ["deadline_us"]),
)


def upgrade() -> None:
    # Until the revision's own word is noted, the floor is the first that could be meant.
    op.add_column(VERSION_TABLE, sa.Column("oldest_served", sa.String(32), nullable=False, server_default="0007"))
    op.create_table(
        "build_seen",
        sa.Column("revision", sa.String(32), primary_key=True),
        sa.Column("seen_us", sa.BigInteger, nullable=False),
    )
    create_on_sqlite(online_indexes)


def downgrade() -> None:
    raise NotImplementedError("The ledger is never taken back; restore a backup instead.")
