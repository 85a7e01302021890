"""A PostgreSQL of a test's own."""

from __future__ import annotations

from infra.servers import postgres
from tests.services.process import InTests

__all__ = ["PrivatePostgres"]


class PrivatePostgres(InTests, postgres.PrivatePostgres):
    """Skips the test where PostgreSQL isn't installed."""
