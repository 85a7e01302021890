"""Reserved for the operational columns."""

from __future__ import annotations

__all__ = ["down_revision", "downgrade", "revision", "upgrade"]

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    pass


def downgrade() -> None:
    raise NotImplementedError("The ledger is never taken back; restore a backup instead.")
