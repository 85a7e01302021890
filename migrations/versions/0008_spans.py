"""What a span carries: lanes that failed its jobs, preemptions, its prompts' beginning, and when it came."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ["down_revision", "downgrade", "revision", "upgrade"]

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    # A constant default is kept beside the table: no row is written, and what an older build inserts has it too.
    for table in ("ready", "shard_span"):
        op.add_column(table, sa.Column("failed_lanes", sa.Text))
        op.add_column(table, sa.Column("preemptions", sa.Integer, nullable=False, server_default="0"))
        op.add_column(table, sa.Column("beginning", sa.LargeBinary(8)))
        op.add_column(table, sa.Column("beginnings", sa.Integer, nullable=False, server_default="0"))
        op.add_column(table, sa.Column("submitted_us", sa.BigInteger))
    op.add_column("tenant", sa.Column("beginning_key", sa.LargeBinary(32)))


def downgrade() -> None:
    raise NotImplementedError("The ledger is never taken back; restore a backup instead.")
