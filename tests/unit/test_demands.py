"""Constraints from the door to the filter: what is written, what is refused, and what can't be done in time."""

from __future__ import annotations

from decimal import Decimal

import msgspec
import pytest

from broker.domain.errors import ErrorCode
from broker.domain.job import Constraints
from broker.domain.lane import Market, Provider, Supply
from broker.rules.demands import check_constraints, constraints_of
from broker.rules.grouping import canonical_constraints
from broker.rules.placement.facts import demands_of
from broker.rules.placement.feasible import Prospect, window_text
from broker.rules.planning import plan_group
from broker.rules.submission import JobRequest, admit_job, check_batch
from tests.unit.builders import NOW_US, a_key, a_lane, a_price

BODY = msgspec.Raw(b'{"model":"m","messages":[{"role":"user","content":"hi"}]}')
EU = a_lane("eu", region="europe-west4", precision="bf16")
US = a_lane("us", region="us-central1", provider=Provider.AZURE_GPU, market=Market.ON_DEMAND, price=a_price(10**12))
LANES = [EU, US]


def admit(prospects=None, **fields):
    return admit_job(JobRequest(body=BODY, **fields), LANES, "t", NOW_US, prospects or {})


@pytest.mark.parametrize(
    ("texts", "lanes"),
    [
        (["region=europe-west4"], {"eu"}),
        (["region!=europe-west4"], {"us"}),
        (["provider!=azure-gpu"], {"eu"}),
        (["provider=azure-gpu,google-tpu", "market=spot"], {"eu"}),
        (["precision=bf16"], {"eu"}),
        (["interruptible=no"], {"us"}),
        (["max-cost=$0.001"], {"eu"}),
        (["lane=us", "interruptible=yes"], {"us"}),
        ([], {"eu", "us"}),
    ],
)
def test_what_is_required_is_what_the_lanes_are_filtered_by(texts, lanes):
    constraints = canonical_constraints(check_constraints(constraints_of(texts)))
    plan = plan_group(a_key(constraints=constraints), LANES)
    assert {one.lane for one in plan.candidates} == lanes
    assert {one.lane for one in plan.removed} == {"eu", "us"} - lanes


@pytest.mark.parametrize(
    "text", ["region", "colour=red", "interruptible=maybe", "region=", "lane!=eu", "max-cost=free"]
)
def test_what_demands_nothing_known_is_refused(text):
    with pytest.raises(ValueError, match=r"it must be one of lane=NAME|is not an amount in dollars"):
        constraints_of([text])


def test_a_misspelt_constraint_is_refused_and_not_left_out():
    with pytest.raises(msgspec.ValidationError, match="region"):
        msgspec.json.decode(b'{"region":["europe-west4"]}', type=Constraints)


def test_equal_demands_are_one_text_and_come_back_whole():
    one = Constraints(max_cost_usd=Decimal("0.0100"), interruptible=False, denied_regions=("b", "a"))
    other = Constraints(max_cost_usd=Decimal("0.01"), interruptible=False, denied_regions=("a", "b"))
    text = canonical_constraints(one)
    assert text == canonical_constraints(other)
    assert text == '{"denied_regions":["a","b"],"interruptible":false,"max_cost_usd":"0.01"}'
    assert demands_of(text).job_cost_max_nano_usd == 10_000_000


@pytest.mark.parametrize(
    ("constraints", "field"),
    [
        (Constraints(max_cost_usd=Decimal(-1)), "constraints.max_cost_usd"),
        (Constraints(max_cost_usd=Decimal("0.00000000001")), "constraints.max_cost_usd"),
        (Constraints(regions=("x" * 129,)), "constraints.regions"),
        (Constraints(denied_providers=("",)), "constraints.denied_providers"),
        (Constraints(lanes=tuple(map(str, range(101)))), "constraints.lanes"),
    ],
)
def test_values_of_the_wrong_kind_are_refused_by_name(constraints, field):
    refused = admit(constraints=constraints)
    assert (refused.code, refused.field) == (ErrorCode.INVALID_FIELD, field)


def test_what_no_lane_can_do_in_time_is_refused_with_the_nearest_window_that_would_do():
    slow = {name: Prospect(1, {"m": 10.0}) for name in ("eu", "us")}  # 64 at once: 640 s for a job
    refused = admit(slow, window="5m")
    assert (refused.code, refused.field) == (ErrorCode.DEADLINE_IMPOSSIBLE, "window")
    assert refused.message == (
        "window leaves 300 s; the fastest lane allowed needs 640 s (eu takes 640 s for a job):"
        " the nearest window that would do is 11m"
    )
    assert admit(slow, window="11m").job
    mixed = slow | {"us": Prospect(1, {"m": 0.01})}
    assert admit(mixed, window="5s").job
    assert admit(mixed, window="5s", constraints=Constraints(regions=("europe-west4",))).code == "deadline_impossible"
    assert admit({}, window="1s").job  # before the planner has said anything
    assert check_batch(LANES, slow, "{}", 300).code is ErrorCode.DEADLINE_IMPOSSIBLE
    assert check_batch(LANES, slow, "{}", 700) is None
    assert check_batch(LANES, {}, '{"regions":["mars"]}', 700).code is ErrorCode.NO_LANE_ALLOWED


def test_a_lane_that_has_to_start_first_counts_with_its_start_and_one_without_workers_is_unknown():
    elastic = a_lane("eu", supply=Supply.ELASTIC, start_unbilled_seconds=60.0, start_billed_seconds=100.0)
    request = JobRequest(body=BODY, window="1m")
    refused = admit_job(request, [elastic], "t", NOW_US, {"eu": Prospect(0, {"m": 0.01})})
    assert refused.message.endswith(
        "(eu takes 0.64 s for a job, and 200 s to start an instance): the nearest window that would do is 4m"
    )
    assert admit_job(request, [EU], "t", NOW_US, {"eu": Prospect(0, {"m": 100.0})}).job
    assert [window_text(s) for s in (0.2, 119, 121, 7_200, 9_000)] == ["1s", "119s", "3m", "2h", "3h"]
