"""Workloads and lanes that nothing was tuned on: other hours, scales, mixes, prices, quotas, start-up times."""

from __future__ import annotations

from array import array
from random import Random

import msgspec
import pytest

from broker.simulation.bound import bound_usd
from broker.simulation.faults import named_faults
from broker.simulation.replay import replay
from broker.simulation.workload import Source, Workload

_HISTORY_STEPS = 8_640


def mixed(chance, workload):
    """Each class from another workload, hours later and at another scale; the seam lies in the history."""
    scale = chance.choice([0.5, 0.8, 1, 1.3, 2])
    sources = []
    for place in range(3):
        source: Source = workload(chance.choice(["w0", "w1", "w2"])).sources[place]
        later = chance.randrange(_HISTORY_STEPS - 600)
        part = scale * chance.choice([0.5, 0.8, 1, 1.25, 1.6])
        jobs = [*source.jobs[-later:], *source.jobs[: len(source.jobs) - later]]
        sources.append(msgspec.structs.replace(source, jobs=array("d", (one * part for one in jobs))))
    return Workload(start_s=-86_400, arrivals_end_s=172_800, sources=tuple(sources))


def changed(chance, lanes):
    """Every price, speed, quota and start-up time is another one."""
    found = []
    for lane in lanes:
        speed = chance.uniform(0.7, 1.4)
        found.append(
            msgspec.structs.replace(
                lane,
                hour_nano_usd=round(lane.hour_nano_usd * chance.uniform(0.6, 1.6)),
                quota=max(1, round(lane.quota * chance.choice([0.5, 1, 1, 2]))),
                jobs_per_second={kind: one * speed for kind, one in lane.jobs_per_second.items()},
                start_unbilled_s=lane.start_unbilled_s * chance.uniform(0.7, 1.3),
            )
        )
    return tuple(found)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2, 3, *(pytest.param(seed, marks=pytest.mark.long) for seed in (4, 5))])
def test_it_holds_on_what_it_was_not_made_for(lanes, workload, seed):
    chance = Random(f"placement/{seed}")
    arrivals, others = mixed(chance, workload), changed(chance, lanes)
    faults = named_faults(chance.choice(["base", "spot_gone"]), arrivals)
    result = replay(others, arrivals, faults, seed=seed)
    assert 1.0 <= result.cost_usd / bound_usd(others, arrivals, faults) <= 1.10
    assert result.missed <= 1e-4 * result.jobs
