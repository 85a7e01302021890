"""What producers on the bus are still to be told, and the tree that the ledger's batches are sealed in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from broker.database.types import BigCounter, Digest, Id
from migrations.append_only import refuse_changes_of_more_on_postgresql, refuse_changes_on_sqlite

__all__ = ["down_revision", "downgrade", "revision", "upgrade"]

revision = "0003"
down_revision = "0002"

APPEND_ONLY = ("ledger_seal_leaf", "ledger_checkpoint")


def upgrade() -> None:
    op.create_table(
        "reply",
        sa.Column("message_digest", Digest, primary_key=True),
        sa.Column("place", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("tenant_id", sa.String(64), nullable=False),
        sa.Column("reply_to", sa.String(128), nullable=False),
        sa.Column("idempotency_key", sa.String(256), nullable=False),
        sa.Column("job_id", Id),
        sa.Column("error_code", sa.String(32)),
        sa.Column("message", sa.Text),
    )
    op.create_index("ix_reply_job", "reply", ["job_id"])
    op.create_table(
        "ledger_seal_leaf",
        sa.Column("tree_index", BigCounter, primary_key=True, autoincrement=False),
        sa.Column("stream_id", Id, nullable=False),
        sa.Column("batch_number", sa.BigInteger, nullable=False),
        sa.Column("batch_hash", Digest, nullable=False),
    )
    op.create_index("ix_ledger_seal_leaf_batch", "ledger_seal_leaf", ["stream_id", "batch_number"], unique=True)
    op.create_table(
        "ledger_checkpoint",
        sa.Column("tree_size", BigCounter, primary_key=True, autoincrement=False),
        sa.Column("root", Digest, nullable=False),
        sa.Column("sealed_us", sa.BigInteger, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
    )
    if op.get_bind().dialect.name == "postgresql":
        refuse_changes_of_more_on_postgresql(APPEND_ONLY)
        # Its rows come and go all day; what is dead in it must go soon, or every look wades through it.
        op.execute(
            "ALTER TABLE reply SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500,"
            " autovacuum_vacuum_cost_delay = 0)"
        )
    else:
        refuse_changes_on_sqlite(APPEND_ONLY)


def downgrade() -> None:
    raise NotImplementedError("The ledger is never taken back; restore a backup instead.")
