"""The ledger's unit tests, word for word, on PostgreSQL."""

from __future__ import annotations

from tests.unit.test_ledger import *  # noqa: F403 (the tests themselves)
from tests.unit.test_ledger import ledger

__all__ = ["ledger"]
