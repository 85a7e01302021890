"""A PostgreSQL database with this program's schema, as `broker db upgrade` makes it."""

from __future__ import annotations

from broker.database.drivers.postgres.database import PostgresDatabase
from broker.database.migrating import upgrade
from broker.rules.schema_fit import SchemaState

__all__ = ["upgrade_postgres"]


def upgrade_postgres(url: str) -> SchemaState:
    """Returns the state it was in."""
    database = PostgresDatabase(url)
    try:
        return upgrade(database.engine)
    finally:
        database.close()
