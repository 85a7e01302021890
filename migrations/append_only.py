"""What makes a table a ledger, for the migrations that create one."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from broker.ledger.partitions import ensure_partitions

__all__ = [
    "drop_not_null_on_sqlite",
    "partition_by_month",
    "refuse_changes_of_more_on_postgresql",
    "refuse_changes_on_postgresql",
    "refuse_changes_on_sqlite",
]


def refuse_changes_on_postgresql(tables: Sequence[str]) -> None:
    """UPDATE, DELETE and TRUNCATE of these tables fail, also aimed at a partition; a partition can be dropped whole."""
    # Class 23, so that a refusal is an IntegrityError here as it is on SQLite.
    op.execute(
        "CREATE FUNCTION refuse_ledger_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION USING ERRCODE = 'restrict_violation',"
        " MESSAGE = TG_TABLE_NAME || ' is append-only: ' || TG_OP || ' is refused';"
        " END $$"
    )
    refuse_changes_of_more_on_postgresql(tables)


def refuse_changes_of_more_on_postgresql(tables: Sequence[str]) -> None:
    """Likewise, in a later migration than the one that began it."""
    for table in tables:
        # By row, because PostgreSQL hands only row triggers down to partitions.
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION refuse_ledger_change()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION refuse_ledger_change()"
        )


def partition_by_month(tables: Sequence[str]) -> None:
    """This month's partition and the next three of each table, and one for what fits none."""
    # Rows arrive in the order of recorded_us, so a block range index is a few pages where a B-tree would be gigabytes.
    for table in tables:
        op.create_index(f"ix_{table}_recorded", table, ["recorded_us"], postgresql_using="brin")
    ensure_partitions(op.get_bind(), time.time_ns() // 1000)


def refuse_changes_on_sqlite(tables: Sequence[str]) -> None:
    """UPDATE and DELETE of these tables fail."""
    for table in tables:
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table}"
                f" BEGIN SELECT RAISE(ABORT, '{table} is append-only: {change} is refused'); END"
            )


def drop_not_null_on_sqlite(table: str, columns: Sequence[str]) -> None:
    """Let these columns be null; no row, index or trigger is touched, however large the table is.

    SQLite 3.40 has no statement for it. Its documents name this way for changes that don't concern what is stored
    (https://www.sqlite.org/lang_altertable.html, section 8): the table's text is edited, and the schema read anew.
    """
    connection = op.get_bind()
    question = sa.text("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = :table")
    before = connection.execute(question, {"table": table}).scalar_one()
    after = before
    for column in columns:
        after, count = re.subn(rf"(?m)^(\s+{column} BIGINT) NOT NULL(?=,)", r"\1", after)
        if count != 1:
            raise ValueError(f"{table}.{column} is not written down as expected")
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema = ON")
    try:
        change = sa.text("UPDATE sqlite_master SET sql = :after WHERE type = 'table' AND name = :table")
        connection.execute(change, {"after": after, "table": table})
        connection.exec_driver_sql(f"PRAGMA schema_version = {version + 1}")
    finally:
        connection.exec_driver_sql("PRAGMA writable_schema = RESET")
    found = {row.name: row.notnull for row in connection.exec_driver_sql(f"PRAGMA table_info({table})")}
    if any(found[column] for column in columns):
        raise ValueError(f"{table} still refuses null")
