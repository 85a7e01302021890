"""The unit tests of all that touches the database, word for word, on PostgreSQL.

They share one `PostgresDatabase`: hundreds of tests and examples that each opened their own spent a third of the
server's time, and a sixth of theirs, on new connections.
"""

from __future__ import annotations

import uuid

import pytest

from broker.database.drivers.postgres.database import PostgresDatabase
from tests.postgres.conftest import TERMS, emptying
from tests.unit.builders import World, a_lane
from tests.unit.test_abilities import *  # noqa: F403 (the tests themselves)
from tests.unit.test_instances import *  # noqa: F403 (as above)
from tests.unit.test_lanes_out import *  # noqa: F403 (as above)
from tests.unit.test_late_words import *  # noqa: F403 (as above)
from tests.unit.test_many_to_end import *  # noqa: F403 (as above)
from tests.unit.test_nul import *  # noqa: F403 (as above)
from tests.unit.test_overtaken_reading import *  # noqa: F403 (as above)
from tests.unit.test_reruns import *  # noqa: F403 (as above)
from tests.unit.test_sizes import *  # noqa: F403 (as above)
from tests.unit.test_stage_dispatching import *  # noqa: F403 (as above)
from tests.unit.test_stage_finishing import *  # noqa: F403 (as above)
from tests.unit.test_stage_intake import *  # noqa: F403 (as above)
from tests.unit.test_stage_limits import *  # noqa: F403 (as above)
from tests.unit.test_stage_places import *  # noqa: F403 (as above)
from tests.unit.test_stage_recorder import *  # noqa: F403 (as above)
from tests.unit.test_stage_rescuer import *  # noqa: F403 (as above)
from tests.unit.test_stage_tenants import *  # noqa: F403 (as above)
from tests.unit.test_submitting import *  # noqa: F403 (as above)
from tests.unit.test_tried_in_vain import *  # noqa: F403 (as above)
from tests.unit.test_unknown_costs import *  # noqa: F403 (as above)
from tests.unit.test_unknown_lanes import *  # noqa: F403 (as above)
from tests.unit.test_what_spans_carry import *  # noqa: F403 (as above)
from tests.unit.test_whereabouts import *  # noqa: F403 (as above)


@pytest.fixture(scope="module")
def emptied(migrated_url):
    yield from emptying(migrated_url, but=["commit_mark"])  # which the open database counts on


@pytest.fixture(scope="module")
def opened(migrated_url):
    opened = PostgresDatabase(migrated_url, TERMS)
    yield opened
    opened.close()


@pytest.fixture
def database(opened, emptied):
    emptied()
    return opened


@pytest.fixture
def make_world(opened, emptied, tmp_path):
    """Worlds one after another, each on a database that is empty; a world ends when the next is made."""

    def make(*lanes):
        emptied()
        folder = tmp_path / uuid.uuid4().hex
        folder.mkdir()
        return World(opened, lanes or [a_lane()], folder)

    return make
