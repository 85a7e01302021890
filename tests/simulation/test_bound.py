"""The bound is the referee's, to half a percent."""

from __future__ import annotations

import pytest

from broker.simulation.bound import bound_usd
from broker.simulation.faults import named_faults

CASES = [
    ("w0", "base"),
    ("w0", "provider_down"),
    ("w1", "spot_gone"),
    ("w1", "share_50"),
    ("w2", "base"),
    ("w2", "share_60"),
    ("w0_mix_50_30_20", "base"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_bound_is_the_referees(lanes, workload, bounds, name, case):
    shares = {}
    if case.startswith("share_"):
        shares = {lane.provider: int(case[6:]) / 100 for lane in lanes}
    faults = named_faults("base" if shares else case, workload(name))
    assert bound_usd(lanes, workload(name), faults, shares) == pytest.approx(bounds[name][case], rel=0.005)
