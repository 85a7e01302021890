"""A process of the served form ends when its loops have ended, not when the time that they may take is over."""

from __future__ import annotations

import time

from broker.bootstrap.roles import Role
from broker.bootstrap.served import Served, ServedTerms
from tests.unit.builders import a_lane


def test_a_process_with_nothing_under_way_stops_at_once(postgres_url, tmp_path):
    terms = ServedTerms(database_url=postgres_url, data=tmp_path, roles=[Role.CLOSER], drain_seconds=30.0)
    with Served(terms, [a_lane(bus_url="redis://127.0.0.1:1/0")]) as served:
        served.start()
        began = time.monotonic()
        served.stop()
        assert time.monotonic() - began < 10.0
