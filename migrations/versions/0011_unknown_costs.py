"""What a batch's attempts of unknown cost can have cost at most, which its budget counts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ["down_revision", "downgrade", "oldest_served", "revision", "upgrade"]

revision = "0011"
down_revision = "0010"

oldest_served = "0007"
"""A build that doesn't know the column leaves it at 0."""


def upgrade() -> None:
    op.add_column("batch_count", sa.Column("unknown_nano_usd", sa.BigInteger, nullable=False, server_default="0"))


def downgrade() -> None:
    raise NotImplementedError("The ledger is never taken back; restore a backup instead.")
