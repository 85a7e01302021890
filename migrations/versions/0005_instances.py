"""Which instances there were, under the names that bills use, and what is still to be told of those wanted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from broker.database.types import BigCounter, Id

__all__ = ["down_revision", "downgrade", "revision", "upgrade"]

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "instance",
        sa.Column("instance_id", Id, primary_key=True),
        sa.Column("worker_id", sa.String(128), nullable=False),
        sa.Column("lane", sa.String(128), nullable=False),
        sa.Column("resource_id", sa.String(512), nullable=False),
        sa.Column("slots", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("started_us", sa.BigInteger, nullable=False),
        sa.Column("ready_us", sa.BigInteger),
        sa.Column("draining_us", sa.BigInteger),
        sa.Column("stopped_us", sa.BigInteger),
        sa.Column("last_seen_us", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("worker_id"),
        postgresql_with={"fillfactor": 50},
    )
    op.create_index("ix_instance_lane", "instance", ["lane", "started_us"])
    still_open = sa.text("stopped_us IS NULL")
    op.create_index("ix_instance_open", "instance", ["lane"], sqlite_where=still_open, postgresql_where=still_open)
    op.create_table(
        "desired_change",
        sa.Column("lane", sa.String(128), primary_key=True),
        sa.Column("desired", sa.Integer, nullable=False),
        sa.Column("ready", sa.Integer, nullable=False),
        sa.Column("generation", BigCounter, nullable=False),
        sa.Column("changed_us", sa.BigInteger, nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        # A live row changes every five seconds, in its own page; the dead versions must not gather there.
        op.execute(
            "ALTER TABLE instance SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500,"
            " autovacuum_vacuum_cost_delay = 0)"
        )


def downgrade() -> None:
    raise NotImplementedError("The ledger is never taken back; restore a backup instead.")
