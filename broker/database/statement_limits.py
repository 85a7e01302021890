"""How long the statements of one reading may take, where somebody waits for it."""

from __future__ import annotations

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

__all__ = ["limit_statements", "was_cut_off"]

_QUERY_CANCELED = "57014"


def limit_statements(connection: Connection, seconds: int) -> None:
    """Each of the transaction's further statements ends after so long. SQLite has no such limit."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {seconds * 1_000:d}")


def was_cut_off(error: BaseException) -> bool:
    """Whether a statement ended at its limit."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == _QUERY_CANCELED
