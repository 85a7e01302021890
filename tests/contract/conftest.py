"""Fixtures of the contracts: what is under test comes from the class that subclasses the contract."""

from __future__ import annotations

import pytest

from tests.contract.bus_under_test import Bus
from tests.contract.worker_contract import Lane


@pytest.fixture
def bus(request):
    under_test = Bus(request.cls.features)
    yield under_test
    under_test.close()


@pytest.fixture
def lane(request):
    under_test = Lane(request.cls.features)
    yield under_test
    under_test.close()
