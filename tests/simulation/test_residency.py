"""Ten thousand random jobs under random constraints and faults: no attempt runs where its job must not run."""

from __future__ import annotations

from decimal import Decimal

import msgspec
from hypothesis import event, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from broker.database.tables import job, shard, shard_span, work_group
from broker.domain.errors import ErrorCode
from broker.domain.job import Constraints
from broker.domain.lane import Market, Provider
from broker.ledger.prices import BookEntry, import_book
from broker.ledger.tables import attempt
from tests.unit.builders import GENERATE_ONLY, a_failure, a_job_ran, a_lane, a_price, some_lines

EXAMPLES, BATCHES, LINES = 50, 10, 20
"""Fifty times two hundred jobs."""

LANES = [
    a_lane(f"lane-{number}", provider=provider, region=region, market=market, precision=precision, slots=2,
           price=a_price(10**9 * (1 + number)), shard_jobs_max=7)
    for number, (provider, region, market, precision) in enumerate([
        (Provider.GOOGLE_TPU, "europe-west4", Market.SPOT, "bf16"),
        (Provider.GOOGLE_TPU, "us-central1", Market.ON_DEMAND, "bf16"),
        (Provider.AZURE_GPU, "westeurope", Market.ON_DEMAND, "fp8"),
        (Provider.AZURE_GPU, "eastus", Market.SPOT, "fp8"),
        (Provider.ORACLE_GPU, "eu-frankfurt-1", Market.ON_DEMAND, "fp4"),
    ])
]  # fmt: skip
BY_NAME = {str(lane.name): lane for lane in LANES}


def some_of(values):
    return st.sets(st.sampled_from(sorted(values)), max_size=2).map(lambda found: tuple(sorted(found)))


CONSTRAINTS = st.builds(
    Constraints,
    lanes=st.one_of(st.just(()), some_of(BY_NAME)),
    providers=st.one_of(st.just(()), some_of(Provider)),
    denied_providers=some_of(Provider),
    regions=st.one_of(st.just(()), some_of({lane.region for lane in LANES})),
    denied_regions=some_of({lane.region for lane in LANES}),
    markets=st.one_of(st.just(()), some_of(Market)),
    precisions=st.one_of(st.just(()), some_of({"bf16", "fp8", "fp4"})),
    interruptible=st.booleans(),
    max_cost_usd=st.sampled_from([None, None, None, Decimal("0.000005"), Decimal("0.00001")]),
)
FAULTS = st.sampled_from(["succeed", "fail", "unreachable", "preempt", "silent", "dearer", "idle"])


def may_run(constraints, lane) -> bool:
    """What the constraints say, written down once more; the cost is left out, for it changes."""
    return (
        (not constraints.lanes or lane.name in constraints.lanes)
        and (not constraints.providers or lane.provider in constraints.providers)
        and lane.provider not in constraints.denied_providers
        and (not constraints.regions or lane.region in constraints.regions)
        and lane.region not in constraints.denied_regions
        and (not constraints.markets or lane.market in constraints.markets)
        and (not constraints.precisions or lane.precision in constraints.precisions)
        and (constraints.interruptible or lane.market is not Market.SPOT)
    )


def befall(world, written, fault, number) -> None:
    """One thing happens to a shard, or to the lanes."""
    if fault == "dearer":
        entry = BookEntry(written.lane, a_price(10**9 * (2 + number), version=f"v{number}"))
        world.database.write(lambda one: import_book(one, f"b{number}", "f", [entry], world.clock()))
    if fault == "silent":
        world.fall_silent()
    if fault in {"dearer", "silent", "idle"} or not world.claim(written).granted:
        return
    indices = range(written.jobs_count)
    if fault == "preempt":
        world.record(world.returned(written))
    elif fault == "succeed":
        world.record(world.ran(written, *map(a_job_ran, indices)))
    else:
        code = ErrorCode.ENGINE_FAILED if fault == "fail" else ErrorCode.ENGINE_UNREACHABLE
        world.record(world.ran(written, *(a_failure(index, code) for index in indices)))


def lanes_used(world):
    """The lane and the constraints of each attempt, and of each job that was ever sent to a lane."""
    ran = select(attempt.c.lane, work_group.c.constraints).join(job, job.c.job_id == attempt.c.job_id)
    sent = select(shard.c.lane, work_group.c.constraints, shard_span.c.jobs_count).join(
        shard_span, shard_span.c.shard_id == shard.c.shard_id
    )
    return world.read(
        lambda one: (
            one.execute(ran.join(work_group, work_group.c.group_id == job.c.group_id)).all(),
            one.execute(sent.join(work_group, work_group.c.group_id == shard.c.group_id)).all(),
        )
    )


@settings(max_examples=EXAMPLES, phases=GENERATE_ONLY)
@given(
    st.lists(CONSTRAINTS, min_size=BATCHES, max_size=BATCHES),
    st.lists(st.tuples(FAULTS, st.integers(0, 1_000)), min_size=30, max_size=60),
)
def test_no_attempt_runs_outside_its_constraints_whatever_happens(make_world, constraints, faults):
    world = make_world(*LANES)
    for place, one in enumerate(constraints):
        world.take_in(some_lines(LINES, f"b{place}-"), constraints=one, window_seconds=3_600 + 600 * place)
    for number, (fault, whose) in enumerate(faults):
        written = world.dispatch()
        open_now = written or [one for one in world.all_shards().values() if one.closed_us is None]
        if open_now:
            befall(world, open_now[whose % len(open_now)], fault, number)
        world.clock.advance(1.0)
    ran, sent = lanes_used(world)
    event(f"attempts: {len(ran) // 100 * 100} or more")
    for lane, text, *_ in (*ran, *sent):
        found = msgspec.json.decode(text, type=Constraints)
        assert may_run(found, BY_NAME[lane]), (lane, text)
    forbidden_everywhere = [one for one in constraints if not any(may_run(one, lane) for lane in LANES)]
    assert len(forbidden_everywhere) * LINES <= world.waiting_jobs()
