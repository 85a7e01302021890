"""Alembic's environment: runs the history on the connection, and in the transaction, that it is handed.

`broker.database.migrating` is the way in; it builds the configuration in code, so there is no alembic.ini.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from broker.database.migrating import VERSION_TABLE
from broker.database.types import metadata

__all__: list[str] = []

connection = context.config.attributes.get("connection")
if not isinstance(connection, Connection):
    raise SystemExit("Migrations run through `broker db upgrade`, which hands them its connection.")

# The metadata is here for its naming convention alone; the initial migration spells out its tables itself.
context.configure(
    connection=connection,
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
