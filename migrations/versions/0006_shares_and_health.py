"""What limits on suppliers' shares, lanes that come back by degrees, and pruning of plans need."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

__all__ = ["down_revision", "downgrade", "revision", "upgrade"]

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "work_count",
        sa.Column("minute", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("lane", sa.String(128), primary_key=True),
        sa.Column("model", sa.String(256), primary_key=True),
        sa.Column("jobs", sa.BigInteger, nullable=False),
        sa.Column("counted_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "share_limit",
        sa.Column("provider", sa.String(32), primary_key=True),
        sa.Column("share", sa.Float, nullable=False),
        sa.Column("part", sa.Float, nullable=False),
        sa.Column("due_by_us", sa.BigInteger, nullable=False),
        sa.Column("noticed_us", sa.BigInteger, nullable=False),
    )
    # Made anew, so that SQLite has the same words for it. A rest that is forgotten is found out by the next fault.
    op.drop_table("lane_rest")
    op.create_table(
        "lane_rest",
        sa.Column("lane", sa.String(128), primary_key=True),
        sa.Column("until_us", sa.BigInteger, nullable=False),
        sa.Column("rest_seconds", sa.Float, nullable=False),
        sa.Column("error_code", sa.String(32), nullable=False),
        sa.Column("since_us", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("back_us", sa.BigInteger),
    )
    # What was decided later, and what a decision was used for, are asked for often; both tables only grow.
    op.create_index("ix_assignment_generation", "assignment", ["generation"])
    op.create_index("ix_shard_assignment", "shard", ["assignment_id"])


def downgrade() -> None:
    raise NotImplementedError("The ledger is never taken back; restore a backup instead.")
