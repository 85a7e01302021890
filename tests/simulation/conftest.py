"""The referee's lanes, arrivals and bounds."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec
import pytest

from broker.simulation.lane_files import DEFAULT_LANES, read_lanes
from broker.simulation.workload import read_arrivals
from tests.unit.conftest import data, make_world, migrated, quiet  # noqa: F401 (fixtures)

FIXTURES = Path(__file__).parents[1] / "fixtures" / "placement"


@pytest.fixture(scope="session")
def lanes():
    return read_lanes(DEFAULT_LANES)


@pytest.fixture(scope="session")
def bounds():
    return msgspec.json.decode((FIXTURES / "bounds.json").read_bytes())


@pytest.fixture(scope="session")
def workload():
    return cache(lambda name: read_arrivals(FIXTURES / f"{name}_arrivals.csv.gz"))
