"""Indexes on tables in use, for the migrations that add one: on PostgreSQL nobody waits while they are built.

A revision names them as `online_indexes`; they are built before its `upgrade` runs, outside of any transaction, and
each step finds out what is left to do. So an index on a new column takes a revision of its own, the next. SQLite, which
one process uses, builds them in `create_on_sqlite`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alembic import op

from broker.database.lock_waits import OnlineSession

__all__ = ["OnlineIndex", "create_on_sqlite"]

_NAME_BYTES_MAX = 63

_KIND = (
    "SELECT c.relkind FROM pg_class c WHERE c.relname = :name"
    " AND c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
)
_VALID = (
    "SELECT i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE c.relname = :name"
    " AND c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
)
# The partitions of a table, each with the valid index that is attached to the one of this name, if any.
_PARTITIONS = (
    "SELECT child.relname, bool_or(attached.inhrelid IS NOT NULL) FROM pg_inherits i"
    " JOIN pg_class child ON child.oid = i.inhrelid"
    " LEFT JOIN pg_index own ON own.indrelid = child.oid"
    " LEFT JOIN pg_inherits attached ON attached.inhrelid = own.indexrelid"
    " AND attached.inhparent = to_regclass(quote_ident(:index))"
    " WHERE i.inhparent = to_regclass(quote_ident(:name)) GROUP BY child.relname ORDER BY child.relname"
)


@dataclass(frozen=True)
class OnlineIndex:
    """An index of these columns; with `where` of those rows alone, and then not on a partitioned table."""

    name: str
    table: str
    columns: Sequence[str]
    where: str | None = None

    @property
    def planned(self) -> list[str]:
        """What is to be done, for people to read."""
        built = f"CREATE INDEX CONCURRENTLY {self._definition(self.name, self.table)}"
        return [f"{built} (partition by partition, where it has any)"]

    def build(self, session: OnlineSession) -> None:
        """Build it where it isn't there whole; what a killed build left behind is removed first."""
        if session.rows(_KIND, name=self.table) == [("p",)]:
            self._build_by_partition(session)
        else:
            self._build_concurrently(session, self.name, self.table)

    def _build_by_partition(self, session: OnlineSession) -> None:
        """First the parent's, which holds nothing; it is valid once each partition's is attached to it."""
        if not session.rows(_VALID, name=self.name):
            definition = self._definition(self.name, self.table).replace(" ON ", " ON ONLY ", 1)
            session.briefly(f"CREATE INDEX {definition}")
        for partition, is_attached in session.rows(_PARTITIONS, name=self.table, index=self.name):
            if is_attached:
                continue
            name = self._name_on(str(partition))
            self._build_concurrently(session, name, str(partition))
            session.briefly(f"ALTER INDEX {self.name} ATTACH PARTITION {name}")

    def _build_concurrently(self, session: OnlineSession, name: str, table: str) -> None:
        valid = session.rows(_VALID, name=name)
        if valid == [(True,)]:
            return
        if valid:
            session.at_length(f"DROP INDEX CONCURRENTLY {name}")
        session.at_length(f"CREATE INDEX CONCURRENTLY {self._definition(name, table)}")

    def _definition(self, name: str, table: str) -> str:
        rows = f" WHERE {self.where}" if self.where else ""
        return f"{name} ON {table} ({', '.join(self.columns)}){rows}"

    def _name_on(self, partition: str) -> str:
        """As PostgreSQL would name it."""
        return f"{partition}_{'_'.join(self.columns)}"[: _NAME_BYTES_MAX - 4] + "_idx"


def create_on_sqlite(indexes: Sequence[OnlineIndex]) -> None:
    """The same there, in the migration's transaction; on PostgreSQL they are built already."""
    if op.get_bind().dialect.name != "postgresql":
        for index in indexes:
            op.create_index(index.name, index.table, list(index.columns), sqlite_where=index.where)
