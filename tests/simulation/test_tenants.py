"""A tenant with nine tenths of the work doesn't make the others wait."""

from __future__ import annotations

from array import array

import msgspec
import pytest

from broker.simulation.faults import named_faults
from broker.simulation.replay import replay


def part_of(workload, tenant, part):
    return tuple(
        msgspec.structs.replace(source, tenant=tenant, jobs=array("d", (jobs * part for jobs in source.jobs)))
        for source in workload.sources
    )


@pytest.mark.slow
def test_a_large_tenant_does_not_delay_the_others(lanes, workload):
    w0 = workload("w0")
    small = part_of(workload("w2"), "small", 0.1)
    together = msgspec.structs.replace(w0, sources=(*part_of(w0, "large", 0.9), *small))
    alone = msgspec.structs.replace(w0, sources=small)
    faults = named_faults("base", w0)
    lonely = {one.kind: one for one in replay(lanes, alone, faults).classes}
    crowded = {one.kind: one for one in replay(lanes, together, faults).classes if one.tenant == "small"}
    assert crowded.keys() == lonely.keys() == {"1min", "1h", "24h"}
    for kind, one in crowded.items():
        assert one.missed == 0
        assert one.wait_p50_s <= 1.1 * lonely[kind].wait_p50_s
        assert one.wait_p95_s <= 1.1 * lonely[kind].wait_p95_s
