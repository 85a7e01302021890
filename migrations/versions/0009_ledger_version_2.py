"""Version 2 of the ledger's rows: new columns, all of them nullable; rows of version 1 stay as they were written."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.types import TypeEngine

from broker.database.types import Digest
from migrations.append_only import drop_not_null_on_sqlite

__all__ = ["down_revision", "downgrade", "revision", "upgrade"]

revision = "0009"
down_revision = "0008"

_Kind = TypeEngine[Any] | type[TypeEngine[Any]]
_ADDED: dict[str, tuple[tuple[str, _Kind], ...]] = {
    "attempt": (
        ("resource_id", sa.String(512)),
        ("zone", sa.String(64)),
        ("endpoint", sa.String(64)),
        ("claimed_us", sa.BigInteger),
        ("currency", sa.String(3)),
        ("price_digest", Digest),
        ("decision_digest", Digest),
        ("due_us", sa.BigInteger),
        ("first_token_us", sa.BigInteger),
        ("cache_write_tokens", sa.BigInteger),
        ("usage_basis", sa.String(16)),
        ("tier_asked", sa.String(32)),
        ("tier_served", sa.String(32)),
        ("key_id", sa.String(64)),
        ("tags", sa.Text),
        ("charged_nano_usd", sa.BigInteger),
    ),
    "cost_entry": (
        ("resource_id", sa.String(512)),
        ("region", sa.String(64)),
        ("zone", sa.String(64)),
        ("accelerator", sa.String(64)),
        ("currency", sa.String(3)),
        ("bill_line_digest", Digest),
    ),
    "job_outcome": (
        ("attempt_number", sa.Integer),
        ("submission_digest", Digest),
    ),
    "price": (
        ("sku", sa.String(256)),
        ("billing_account", sa.String(256)),
        ("cached_input_token_pico_usd", sa.BigInteger),
        ("cache_write_token_pico_usd", sa.BigInteger),
        ("valid_from_us", sa.BigInteger),
        ("valid_until_us", sa.BigInteger),
    ),
}
_TOKENS = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens")


def upgrade() -> None:
    # Nullable and without a default: both databases only note the column, and read null where a row lacks it.
    for table, columns in _ADDED.items():
        for name, kind in columns:
            op.add_column(table, sa.Column(name, kind))
    if op.get_bind().dialect.name == "postgresql":
        for name in _TOKENS:  # noted in the catalog alone, like the above; partitions follow their table
            op.alter_column("attempt", name, nullable=True)
    else:
        drop_not_null_on_sqlite("attempt", _TOKENS)


def downgrade() -> None:
    raise NotImplementedError("The ledger is never taken back; restore a backup instead.")
