"""What roles in separate processes need: who is there, which lanes rest, and marks by which a commit is looked up."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from broker.database.types import Id

__all__ = ["down_revision", "downgrade", "revision", "upgrade"]

revision = "0002"
down_revision = "0001"

CHURNED = ("commit_mark", "outbox", "ready", "shard")
"""Small tables whose rows come and go all day: what is dead in them must go soon, or every look wades through it."""


def upgrade() -> None:
    op.create_table(
        "lane_rest",
        sa.Column("lane", sa.String(128), primary_key=True),
        sa.Column("until_us", sa.BigInteger, nullable=False),
        sa.Column("rest_seconds", sa.Float, nullable=False),
        sa.Column("error_code", sa.String(32), nullable=False),
    )
    op.create_table(
        "worker",
        sa.Column("worker_id", sa.String(128), primary_key=True),
        sa.Column("lane", sa.String(128), nullable=False),
        sa.Column("slots", sa.Integer, nullable=False),
        sa.Column("started_us", sa.BigInteger, nullable=False),
        sa.Column("seen_us", sa.BigInteger, nullable=False),
        sa.Column("left_us", sa.BigInteger),
    )
    op.create_index("ix_worker_seen", "worker", ["seen_us"])
    op.create_table(
        "role_beat",
        sa.Column("role", sa.String(32), primary_key=True),
        sa.Column("beat_us", sa.BigInteger, nullable=False),
    )
    # Written on PostgreSQL alone.
    op.create_table(
        "commit_mark",
        sa.Column("slot", Id, primary_key=True),
        sa.Column("mark", sa.BigInteger, nullable=False),
        sa.Column("used_us", sa.BigInteger, nullable=False),
        postgresql_with={"fillfactor": 20},
    )
    if op.get_bind().dialect.name == "postgresql":
        for table in CHURNED:
            op.execute(
                f"ALTER TABLE {table} SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500,"
                " autovacuum_vacuum_cost_delay = 0)"
            )


def downgrade() -> None:
    raise NotImplementedError("The ledger is never taken back; restore a backup instead.")
