"""What the planner promises on the referee's workloads: close to the bound, never below it, nothing missed."""

from __future__ import annotations

from array import array

import msgspec
import pytest

from broker.rules.placement.policy import Policy
from broker.simulation.bound import bound_usd
from broker.simulation.faults import named_faults
from broker.simulation.replay import replay

WORKLOADS = ("w0", "w1", "w2")
MIX = "w0_mix_50_30_20"
HOUR_STEPS = 360
HISTORY_STEPS = 24 * HOUR_STEPS


def long(*values):
    """A case of the long campaign: `pytest -m long`."""
    return pytest.param(*values, marks=pytest.mark.long)


def changed(workload, scale=1.0, hours_later=0, tripled_at_h=None):
    """The same arrivals, more of them, later, with the one-minute class tripled in a step from an hour on."""
    later = hours_later * HOUR_STEPS
    sources = []
    for source in workload.sources:
        jobs = [scale * one for one in (*source.jobs[-later:], *source.jobs[: len(source.jobs) - later])]
        if tripled_at_h is not None and source.terms.kind == "1min":
            first = HISTORY_STEPS + round(tripled_at_h * HOUR_STEPS)
            jobs[first:] = [3 * one for one in jobs[first:]]
        sources.append(msgspec.structs.replace(source, jobs=array("d", jobs)))
    return msgspec.structs.replace(workload, sources=tuple(sources))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "case"),
    [
        *((name, case) for name in WORKLOADS for case in ("base", "provider_down")),
        ("w0", "spot_gone"),
        long("w1", "spot_gone"),
        long("w2", "spot_gone"),
    ],
)
def test_cost_is_near_the_bound_and_no_deadline_is_missed(lanes, workload, bounds, name, case):
    result = replay(lanes, workload(name), named_faults(case, workload(name)))
    assert 1.0 <= result.cost_usd / bounds[name][case] <= 1.03
    assert result.missed == 0
    assert sum(result.shares.values()) == pytest.approx(1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "percent"), [("w0", 60), ("w0", 50), ("w2", 60), ("w2", 50), long("w1", 60), long("w1", 50)]
)
def test_shares_are_held_to_a_point(lanes, workload, bounds, name, percent):
    policy = Policy(share_all=percent / 100)
    result = replay(lanes, workload(name), named_faults("base", workload(name)), policy)
    assert max(result.shares.values()) <= percent / 100 + 0.01
    assert 1.0 <= result.cost_usd / bounds[name][f"share_{percent}"] <= 1.05
    assert result.missed == 0


@pytest.mark.slow
def test_a_half_of_urgent_work_costs_little_more(lanes, workload, bounds):
    result = replay(lanes, workload(MIX), named_faults("base", workload(MIX)))
    assert 1.0 <= result.cost_usd / bounds[MIX]["base"] <= 1.03
    assert result.missed == 0


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "hours_later"), [(1.3, 6), long(1.3, 0), long(1.0, 6)])
def test_so_it_does_where_there_is_more_of_it_and_at_other_hours(lanes, workload, scale, hours_later):
    arrivals = changed(workload(MIX), scale, hours_later)
    faults = named_faults("base", arrivals)
    result = replay(lanes, arrivals, faults)
    assert 1.0 <= result.cost_usd / bound_usd(lanes, arrivals, faults) <= 1.03
    assert result.missed == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("standby", "missed_part_max"), [(None, 0.006), (1.5, 0.0), long(0.0, 0.006), long(1.0, 0.004), long(2.0, 0.0)]
)
def test_urgent_work_that_triples_at_once_misses_less_the_more_stands_by(lanes, workload, standby, missed_part_max):
    arrivals = changed(workload(MIX), tripled_at_h=42.5)
    result = replay(lanes, arrivals, named_faults("base", arrivals), Policy(standby=standby))
    assert result.missed <= missed_part_max * result.jobs
    assert all(one.missed == 0 for one in result.classes if one.kind != "1min")


@pytest.mark.slow
def test_a_run_follows_from_its_inputs(lanes, workload):
    runs = [replay(lanes, workload("w2"), named_faults("base", workload("w2")), seed=3) for _ in range(2)]
    assert runs[0] == runs[1]
