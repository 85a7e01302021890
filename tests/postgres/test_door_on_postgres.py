"""What each tenant may ask at the door, and the statements that come of it, on PostgreSQL."""

from __future__ import annotations

from tests.unit.test_tenants_at_the_door import *  # noqa: F403 (the tests themselves)
from tests.unit.test_tenants_at_the_door import two

__all__ = ["two"]
