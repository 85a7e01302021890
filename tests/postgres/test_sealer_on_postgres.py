"""The sealer's unit tests, word for word, on PostgreSQL."""

from __future__ import annotations

from tests.unit.test_stage_sealer import *  # noqa: F403 (the tests themselves)
from tests.unit.test_stage_sealer import ledger

__all__ = ["ledger"]
