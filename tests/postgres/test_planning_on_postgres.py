"""The unit tests of shares, lanes' health and the keeper, word for word, on PostgreSQL."""

from __future__ import annotations

from tests.unit.test_health import *  # noqa: F403 (the tests themselves)
from tests.unit.test_keeper import *  # noqa: F403 (as above)
from tests.unit.test_shares import *  # noqa: F403 (as above)
