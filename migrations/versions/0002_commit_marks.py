"""Commit marks, by which a lost answer to a commit is looked up; written on PostgreSQL alone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from broker.database.types import Id

__all__ = ["down_revision", "downgrade", "revision", "upgrade"]

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "commit_mark",
        sa.Column("slot", Id, primary_key=True),
        sa.Column("mark", sa.BigInteger, nullable=False),
        sa.Column("used_us", sa.BigInteger, nullable=False),
        postgresql_with={"fillfactor": 20},
    )


def downgrade() -> None:
    raise NotImplementedError("The ledger is never taken back; restore a backup instead.")
