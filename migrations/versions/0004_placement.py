"""What placing jobs needs: price books and which price holds when, what each lane should hold, and what came when."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from broker.database.types import BigCounter, Digest, Id
from migrations.append_only import refuse_changes_of_more_on_postgresql, refuse_changes_on_sqlite

__all__ = ["down_revision", "downgrade", "revision", "upgrade"]

revision = "0004"
down_revision = "0003"

APPEND_ONLY = ("price_book", "price_in_force")


def upgrade() -> None:
    op.create_table(
        "price_book",
        sa.Column("book", sa.String(64), primary_key=True),
        sa.Column("source_name", sa.Text, nullable=False),
        sa.Column("prices_count", sa.Integer, nullable=False),
        sa.Column("imported_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "price_in_force",
        sa.Column("lane", sa.String(128), primary_key=True),
        sa.Column("from_us", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("price_version", sa.String(64), nullable=False),
        sa.Column("book", sa.String(64), nullable=False),
    )
    op.create_table(
        "lane_plan",
        sa.Column("lane", sa.String(128), primary_key=True),
        sa.Column("generation", BigCounter, nullable=False),
        sa.Column("desired", sa.Integer, nullable=False),
        sa.Column("usable", sa.Integer, nullable=False),
        sa.Column("ready", sa.Integer, nullable=False),
        sa.Column("price_version", sa.String(64), nullable=False),
        sa.Column("speeds", sa.Text, nullable=False),
        sa.Column("trouble", sa.Text),
        sa.Column("planned_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "late_group",
        sa.Column("group_id", Id, primary_key=True),
        sa.Column("finish_us", sa.BigInteger, nullable=False),
        sa.Column("noticed_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "arrival_count",
        sa.Column("minute", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("terms_digest", Digest, primary_key=True),
        sa.Column("model", sa.String(256), nullable=False),
        sa.Column("constraints", sa.Text, nullable=False),
        sa.Column("window_seconds", sa.BigInteger, nullable=False),
        sa.Column("jobs", sa.BigInteger, nullable=False),
    )
    # Prices that were imported before there were books hold from when they were.
    op.execute(
        "INSERT INTO price_in_force (lane, from_us, price_version, book)"
        " SELECT lane, imported_us, version, 'catalog' FROM price"
        " WHERE version = (SELECT max(other.version) FROM price other"
        " WHERE other.lane = price.lane AND other.imported_us = price.imported_us)"
    )
    if op.get_bind().dialect.name == "postgresql":
        refuse_changes_of_more_on_postgresql(APPEND_ONLY)
    else:
        refuse_changes_on_sqlite(APPEND_ONLY)


def downgrade() -> None:
    raise NotImplementedError("The ledger is never taken back; restore a backup instead.")
