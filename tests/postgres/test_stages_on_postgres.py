"""The unit tests of all that touches the database, word for word, on PostgreSQL."""

from __future__ import annotations

from tests.unit.test_instances import *  # noqa: F403 (the tests themselves)
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
from tests.unit.test_stage_recorder import *  # noqa: F403 (as above)
from tests.unit.test_stage_rescuer import *  # noqa: F403 (as above)
from tests.unit.test_stage_tenants import *  # noqa: F403 (as above)
from tests.unit.test_submitting import *  # noqa: F403 (as above)
from tests.unit.test_unknown_costs import *  # noqa: F403 (as above)
from tests.unit.test_unknown_lanes import *  # noqa: F403 (as above)
from tests.unit.test_what_spans_carry import *  # noqa: F403 (as above)
from tests.unit.test_whereabouts import *  # noqa: F403 (as above)
