"""Reserved for the ledger's columns."""

from __future__ import annotations

__all__ = ["down_revision", "downgrade", "revision", "upgrade"]

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    pass


def downgrade() -> None:
    raise NotImplementedError("The ledger is never taken back; restore a backup instead.")
