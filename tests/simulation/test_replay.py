"""What the planner promises on the referee's workloads: close to the bound, never below it, nothing missed."""

from __future__ import annotations

import pytest

from broker.rules.placement.policy import Policy
from broker.simulation.faults import named_faults
from broker.simulation.replay import replay

WORKLOADS = ("w0", "w1", "w2")


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("case", ["base", "spot_gone", "provider_down"])
def test_cost_is_near_the_bound_and_no_deadline_is_missed(lanes, workload, bounds, name, case):
    result = replay(lanes, workload(name), named_faults(case, workload(name)))
    assert 1.0 <= result.cost_usd / bounds[name][case] <= 1.02
    assert result.missed == 0
    assert sum(result.shares.values()) == pytest.approx(1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("percent", [60, 50])
def test_shares_are_held_to_a_point(lanes, workload, bounds, name, percent):
    policy = Policy(share_all=percent / 100)
    result = replay(lanes, workload(name), named_faults("base", workload(name)), policy)
    assert max(result.shares.values()) <= percent / 100 + 0.01
    assert 1.0 <= result.cost_usd / bounds[name][f"share_{percent}"] <= 1.05
    assert result.missed == 0


@pytest.mark.slow
def test_a_half_of_urgent_work_costs_little_more(lanes, workload, bounds):
    name = "w0_mix_50_30_20"
    result = replay(lanes, workload(name), named_faults("base", workload(name)))
    assert 1.0 <= result.cost_usd / bounds[name]["base"] <= 1.05
    assert result.missed == 0


@pytest.mark.slow
def test_a_run_follows_from_its_inputs(lanes, workload):
    runs = [replay(lanes, workload("w2"), named_faults("base", workload("w2")), seed=3) for _ in range(2)]
    assert runs[0] == runs[1]
