"""The unit tests of jobs over the bus, and of replies to them, word for word, on PostgreSQL."""

from __future__ import annotations

from tests.unit.test_stage_notifier import *  # noqa: F403 (the tests themselves)
from tests.unit.test_stage_notifier import bus
from tests.unit.test_stage_receiving import *  # noqa: F403 (as above)

__all__ = ["bus"]
