"""Alembic's environment: runs the history on the connection, and in the transaction, that it is handed.

`broker.database.migrating` is the way in; it builds the configuration in code, so there is no alembic.ini.
"""

from __future__ import annotations

from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext, MigrationInfo
from alembic.script import Script
from sqlalchemy import Connection, text

from broker.database.schema import VERSION_TABLE
from broker.database.types import metadata

__all__: list[str] = []

connection = context.config.attributes.get("connection")
if not isinstance(connection, Connection):
    raise SystemExit("Migrations run through `broker db upgrade`, which hands them its connection.")


def note_oldest_served(*, ctx: MigrationContext, step: MigrationInfo, **_: Any) -> None:  # noqa: ANN401 (what else there is)
    """Where a revision changes which builds the schema serves, the schema says so from then on."""
    revision = step.up_revision
    floor = getattr(revision.module, "oldest_served", None) if isinstance(revision, Script) else None
    if floor and ctx.connection:
        statement = text(f"UPDATE {VERSION_TABLE} SET oldest_served = :floor")  # noqa: S608 (a constant)
        ctx.connection.execute(statement, {"floor": floor})


# The metadata is here for its naming convention alone; the initial migration spells out its tables itself.
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
    on_version_apply=note_oldest_served,  # type: ignore[arg-type] # (it is called by keyword, with these)
)
with context.begin_transaction():
    context.run_migrations()
