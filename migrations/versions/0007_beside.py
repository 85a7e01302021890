"""Shards that run beside the slots, so that a tenant doesn't wait behind another's."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ["down_revision", "downgrade", "revision", "upgrade"]

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("shard", sa.Column("beside", sa.Boolean, nullable=False, server_default=sa.false()))


def downgrade() -> None:
    raise NotImplementedError("The ledger is never taken back; restore a backup instead.")
