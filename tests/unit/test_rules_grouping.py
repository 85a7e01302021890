"""Grouping, sharding, planning and regrouping: where a job may go, with whom, and in which company."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.domain.ids import id_at, ids_of_span, new_span
from broker.domain.job import Constraints
from broker.domain.lane import EngineSettings, Market, PriceMeter, Provider
from broker.rules.grouping import bucket_deadline_us, canonical_constraints, group_digest
from broker.rules.planning import pick_lane, plan_group
from broker.rules.regrouping import regroup
from broker.rules.sharding import JOB_OVERHEAD_BYTES, jobs_per_shard
from tests.unit.builders import MODEL, NOW_US, ONE_PLACE, SECOND_US, a_key, a_lane, a_price, a_span

# ------------------------------------------------------------------------------------------------------ grouping


@given(st.integers(0, 40 * 86_400 * SECOND_US), st.integers(0, 2 * NOW_US))
def test_a_bucket_never_ends_after_the_deadline_nor_long_before_it(left_us, now_us):
    deadline_us = now_us + left_us
    bucket_us = bucket_deadline_us(deadline_us, now_us)
    assert 0 <= deadline_us - bucket_us < max(SECOND_US, left_us / 16)


def test_a_day_has_few_buckets():
    now_us = NOW_US
    buckets = {
        bucket_deadline_us(now_us + 86_400 * SECOND_US + late, now_us + late) for late in range(0, 10**10, 10**7)
    }
    assert len(buckets) <= 4
    assert bucket_deadline_us(now_us + 500, now_us) == now_us  # at least a second wide


def test_constraints_have_one_text():
    one = Constraints(lanes=("b", "a"), regions=("x",))
    other = Constraints(regions=("x",), lanes=("a", "b"))
    assert canonical_constraints(one) == canonical_constraints(other) == '{"lanes":["a","b"],"regions":["x"]}'
    assert canonical_constraints(Constraints()) == "{}"
    assert msgspec.json.decode(canonical_constraints(one), type=Constraints) == other


def test_groups_differ_in_any_part_of_their_key():
    changes = [{}, {"tenant_id": "u"}, {"endpoint": "e"}, {"model": "n"}, {"constraints": "[]"}, {"deadline_us": 1}]
    assert len({group_digest(a_key(**change)) for change in changes}) == len(changes)
    assert group_digest(a_key()) == group_digest(a_key())


# ------------------------------------------------------------------------------------------------------ sharding


@given(st.integers(1, 10_000), st.floats(0.001, 1_000), st.integers(0, 3_000_000), st.integers(64_000, 10**7))
def test_a_shard_keeps_every_limit_of_its_lane_or_is_one_job(jobs_max, speed, body_bytes, message_bytes):
    lane = a_lane(shard_jobs_max=jobs_max, jobs_per_second=speed, message_bytes_max=message_bytes)
    count = jobs_per_shard(lane, a_span(10**6, body_bytes_max=body_bytes))
    assert count >= 1
    if count > 1:
        assert count <= jobs_max
        assert count * (body_bytes + JOB_OVERHEAD_BYTES) < message_bytes
        assert count / speed <= lane.shard_seconds + 0.5 / speed or count <= lane.engine.concurrency / 4


@pytest.mark.parametrize(
    ("lane", "span", "count"),
    [
        ({"shard_jobs_max": 7}, {}, 7),
        ({"jobs_per_second": 5.0, "shard_seconds": 4.0}, {}, 20),
        ({"jobs_per_second": 0.001}, {}, 16),  # a quarter of 64 places
        ({"jobs_per_second": 0.001, "engine": ONE_PLACE}, {}, 1),
        ({"message_bytes_max": 100_000}, {"body_bytes_max": 9_936}, 9),
        ({}, {"body_bytes_max": 10**9}, 1),
        ({}, {"alone": True}, 1),
    ],
)
def test_the_tightest_limit_counts(lane, span, count):
    assert jobs_per_shard(a_lane(**lane), a_span(1_000, **span)) == count


# ------------------------------------------------------------------------------------------------------ planning

_names = st.sets(st.sampled_from(["a", "b", "c"]), max_size=2).map(lambda names: tuple(sorted(names)))
_constraints = st.builds(
    Constraints,
    lanes=_names,
    regions=_names,
    providers=st.sampled_from([(), (Provider.AZURE_GPU,), (Provider.GOOGLE_TPU, Provider.ORACLE_GPU)]),
    markets=st.sampled_from([(), (Market.SPOT,)]),
)
_lanes = st.lists(
    st.builds(
        lambda name, region, provider, market, model, nano, speed: a_lane(
            name, region=region, provider=provider, market=market, models=(model,), price=a_price(nano),
            jobs_per_second=speed,
        ),
        st.sampled_from(["a", "b", "c", "d"]),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(Provider),
        st.sampled_from(Market),
        st.sampled_from([MODEL, "other"]),
        st.sampled_from([0, 10**9, 2 * 10**9, 4 * 10**9]),
        st.sampled_from([0.5, 1.0, 2.0]),
    ),
    max_size=5,
    unique_by=lambda lane: lane.name,
)  # fmt: skip


def _may(constraints, lane):
    pairs = [
        (constraints.lanes, lane.name),
        (constraints.regions, lane.region),
        (constraints.providers, lane.provider),
        (constraints.markets, lane.market),
    ]
    return MODEL in lane.engine.models and all(not allowed or found in allowed for allowed, found in pairs)


@given(_lanes, _constraints)
def test_a_plan_keeps_the_constraints_accounts_for_each_lane_and_orders_by_merit(lanes, constraints):
    key = a_key(constraints=canonical_constraints(constraints))
    plan = plan_group(key, lanes)
    by_name = {lane.name: lane for lane in lanes}
    chosen = [candidate.lane for candidate in plan.candidates]
    assert set(chosen) == {lane.name for lane in lanes if _may(constraints, lane)}
    assert {*chosen, *(removed.lane for removed in plan.removed)} == by_name.keys()
    costs = [by_name[name].price.instance_hour_pico_usd / by_name[name].jobs_per_second for name in chosen]
    assert costs == sorted(costs)
    assert plan_group(key, lanes[::-1]).candidates == plan.candidates


def test_a_removal_says_why():
    lane = a_lane("a", region="r1")
    for constraints, why in (
        (Constraints(lanes=("b",)), "lanes: not among b"),
        (Constraints(regions=("r2", "r3")), "regions: not among r2, r3"),
        (Constraints(markets=("on-demand",)), "markets: not among on-demand"),
        (Constraints(providers=("azure-gpu",)), "providers: not among azure-gpu"),
    ):
        (removed,) = plan_group(a_key(constraints=canonical_constraints(constraints)), [lane]).removed
        assert removed.filter == why
    (removed,) = plan_group(a_key(model="big"), [lane]).removed
    assert removed.filter == "model: does not run big"


def test_the_cheapest_lane_with_room_is_picked_and_the_reason_said():
    dear, cheap = a_lane("dear", price=a_price(2 * 10**9)), a_lane("cheap", price=a_price(10**9))
    plan = plan_group(a_key(), [dear, cheap])
    assert plan.candidates[0].price_version == cheap.price.version
    pick = pick_lane(plan, {"dear", "cheap"})
    assert (pick[0].lane, pick[1]) == ("cheap", "the cheapest of 2 allowed lanes")
    pick = pick_lane(plan, {"dear"})
    assert (pick[0].lane, pick[1]) == ("dear", "the cheapest allowed lane with room; cheap had none")
    assert pick_lane(plan, set()) is None
    assert pick_lane(plan_group(a_key(), [dear]), {"dear"})[1] == "the only lane allowed"


def test_a_faster_lane_may_be_cheaper_at_a_higher_price():
    slow = a_lane("slow", jobs_per_second=1.0)
    fast = a_lane("fast", jobs_per_second=4.0, price=a_price(2 * 3_600_000_000))
    assert [one.lane for one in plan_group(a_key(), [slow, fast]).candidates] == ["fast", "slow"]


def test_a_lane_priced_by_the_token_is_planned_too():
    engine = EngineSettings(driver="echo", models=(MODEL,))
    lane = a_lane("t", engine=engine, price=a_price(0, meter=PriceMeter.TOKEN, input_token_pico_usd=5))
    assert [one.lane for one in plan_group(a_key(), [lane]).candidates] == ["t"]


# ---------------------------------------------------------------------------------------------------- regrouping


@st.composite
def _waiting(draw):
    """Spans cut out of two runs of ids, without overlap, differing here and there."""
    spans = []
    for first in (bytes(12) + b"\0\0\0\x05", b"\x01" + bytes(15)):
        at = 0
        for _ in range(draw(st.integers(0, 6))):
            at += draw(st.sampled_from([0, 0, 1, 300]))
            count = draw(st.integers(1, 3))
            changes = {
                "attempt_number": draw(st.integers(1, 2)),
                "alone": draw(st.booleans()),
                "body_bytes_max": draw(st.integers(1, 9)),
            }
            spans.append(a_span(count, first_job_id=id_at(first, at), **changes))
            at += count
    return draw(st.permutations(spans))


def _jobs(spans):
    return {
        job_id: (span.attempt_number, span.failures, span.crashes, span.alone, span.not_before_us)
        for span in spans
        for job_id in ids_of_span(span.first_job_id, span.jobs_count)
    }


@given(_waiting())
def test_regrouped_jobs_are_the_same_jobs_in_as_few_spans_as_can_be(spans):
    merged = regroup(spans)
    assert _jobs(merged) == _jobs(spans)
    assert sum(span.jobs_count for span in merged) == sum(span.jobs_count for span in spans)
    assert regroup(merged) == merged
    bodies = {job: span.body_bytes_max for span in spans for job in ids_of_span(span.first_job_id, span.jobs_count)}
    for span in merged:
        assert span.body_bytes_max == max(bodies[job] for job in ids_of_span(span.first_job_id, span.jobs_count))


def test_only_what_says_the_same_is_merged():
    first = new_span()
    follows = {"first_job_id": id_at(first, 2)}
    left = a_span(2, first_job_id=first)
    assert [span.jobs_count for span in regroup([a_span(1, **follows), left])] == [3]
    for change in ({"alone": True}, {"failures": 1}, {"crashes": 1}, {"not_before_us": 1}, {"batch_id": None}):
        assert len(regroup([left, a_span(1, **follows, **change)])) == 2
    assert len(regroup([left, a_span(1, first_job_id=id_at(first, 3))])) == 2
    assert len(regroup([left, a_span(1)])) == 2
    assert regroup([]) == []
