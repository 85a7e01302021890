"""What nobody knows of a call's cost, from its end to what people read: ledger, budgets, files. Two of each."""

from __future__ import annotations

import msgspec
import pytest
from sqlalchemy import bindparam, text

from broker.database.batches import spent_nano_usd
from broker.database.types import Id
from broker.domain.errors import ErrorCode
from broker.domain.lane import EngineSettings, PriceMeter
from broker.domain.outcome import Outcome
from broker.domain.usage import Usage, UsageBasis
from broker.ledger.explaining import explain
from broker.ledger.questions import Filters, summary
from broker.ledger.speeds import learned_speeds
from broker.ledger.standing import standing
from broker.ledger.tables import attempt
from broker.rules.placement.facts import expected_cost_nano_usd
from broker.stages.rescuer import LATE_SECONDS
from tests.unit.builders import MODEL, a_failure, a_job_ran, a_lane, a_line, a_price, some_lines

IN, OUT, CACHED = 1_000_000, 4_000_000, 100_000  # pico-dollars a token
BY_TOKEN = a_price(
    version="2026-01-01.token",
    meter=PriceMeter.TOKEN,
    instance_hour_pico_usd=0,
    input_token_pico_usd=IN,
    output_token_pico_usd=OUT,
    cached_input_token_pico_usd=CACHED,
)
UPPER = Usage(100, 0, 50)
UPPER_NANO_USD = (100 * IN + 50 * OUT) // 1_000
UNKNOWN = {"usage": Usage(accelerator_us=9), "usage_basis": UsageBasis.NONE, "usage_upper": UPPER}


@pytest.fixture
def paid(make_world):
    """A lane by the token, which all work goes to, beside one by the hour that is dearer."""
    vendor = a_lane("vendor", price=BY_TOKEN, shard_jobs_max=8)
    owned = a_lane("owned", price=a_price(3_600_000_000_000_000), models=("m2",))
    return make_world(vendor, owned)


def _one_shard(world, count=4, **terms):
    record = world.take_in(some_lines(count), **terms)
    (shard,) = [one for one in world.claimed() if one.batch_id == record.batch_id]
    return record, shard


def _rows(world, *names):
    rows = sorted(world.rows(attempt), key=lambda row: (row.shard_id, row.shard_index))
    return [tuple(getattr(row, name) for name in names) for row in rows]


COSTS = ("cost_nano_usd", "cost_upper_nano_usd", "cost_basis", "usage_basis", "input_tokens", "output_tokens")


def test_a_row_says_what_is_known_and_bounds_the_rest(paid):
    _, shard = _one_shard(paid, 7)
    paid.record(
        paid.ran(
            shard,
            a_job_ran(0, usage=Usage(10, 0, 5), usage_basis=UsageBasis.ENGINE),
            a_job_ran(1, usage=Usage(10, 9, 5), usage_basis=UsageBasis.ENGINE),
            a_job_ran(2, **UNKNOWN),
            a_job_ran(3, usage=Usage(10, 0, 5), usage_basis=UsageBasis.INCONSISTENT, usage_upper=Usage(10, 0, 9)),
            a_job_ran(4, **UNKNOWN | {"usage_basis": UsageBasis.IMPLAUSIBLE}),
            a_failure(5, ErrorCode.ENGINE_TIMEOUT, **UNKNOWN),
            a_failure(6, ErrorCode.ENGINE_INVALID_REPLY, usage=Usage(3110, 0, 673), usage_basis=UsageBasis.ENGINE),
        )
    )
    assert _rows(paid, *COSTS) == [
        (30_000, 30_000, "list", "engine", 10, 5),
        (21_900, 21_900, "list", "engine", 10, 5),
        (0, UPPER_NANO_USD, "unknown", "none", None, None),
        (30_000, 46_000, "unknown", "inconsistent", 10, 5),
        (0, UPPER_NANO_USD, "unknown", "implausible", None, None),
        (0, UPPER_NANO_USD, "unknown", "none", None, None),
        (5_802_000, 5_802_000, "list", "engine", 3110, 673),
    ]
    assert paid.verified().faults == []


def test_what_never_got_there_cost_nothing_and_that_is_known(paid):
    _, shard = _one_shard(paid, 1)
    free = {"usage": Usage(), "usage_basis": UsageBasis.COUNTED}
    paid.record(paid.ran(shard, a_failure(0, ErrorCode.ENGINE_UNREACHABLE, status_code=0, **free)))
    assert _rows(paid, *COSTS) == [(0, 0, "list", "counted", 0, 0)]


def test_by_the_hour_the_cost_is_known_whatever_the_tokens_are(paid):
    paid.take_in(a_line("x", body={"model": "m2"}) + b"\n")
    (shard,) = paid.claimed()
    assert shard.lane == "owned"
    paid.record(paid.ran(shard, a_job_ran(0, usage=Usage(accelerator_us=9), usage_basis=UsageBasis.NONE)))
    assert _rows(paid, *COSTS) == [(9_000_000, 9_000_000, "attributed", "none", None, None)]


def test_an_older_workers_failure_is_unknown_and_not_nothing(paid):
    _, shard = _one_shard(paid, 2)
    paid.record(paid.ran(shard, a_failure(0, usage=Usage()), a_job_ran(1, usage=Usage(10, 0, 5))))
    assert _rows(paid, *COSTS) == [(0, 0, "unknown", "none", None, None), (30_000, 30_000, "list", "engine", 10, 5)]


def test_budgets_count_the_bound_of_their_own_batch(paid):
    record, shard = _one_shard(paid, 4)
    other, second = _one_shard(paid, 4)
    paid.record(paid.ran(shard, *(a_job_ran(index, **UNKNOWN) for index in range(4))))
    paid.record(paid.ran(second, *(a_job_ran(index, usage=Usage(10, 0, 5)) for index in range(4))))
    counts, others = paid.counts(record.batch_id), paid.counts(other.batch_id)
    assert (counts.cost_nano_usd, counts.unknown_nano_usd) == (0, 4 * UPPER_NANO_USD)
    assert counts.at_most_nano_usd == 4 * UPPER_NANO_USD
    assert (others.cost_nano_usd, others.unknown_nano_usd) == (4 * 30_000, 0)


def test_a_budget_that_may_be_spent_stops_the_batch_and_no_other(paid):
    expected = (1_000 * IN + 250 * OUT) // 1_000  # of a job that nothing is known of
    record, shard = _one_shard(paid, 4, max_cost_nano_usd=5 * expected)
    huge = Usage(0, 0, 4 * 5 * expected * 1_000 // OUT)
    unknown = [a_failure(index, ErrorCode.ENGINE_TIMEOUT, **UNKNOWN | {"usage_upper": huge}) for index in range(4)]
    paid.record(paid.ran(shard, *unknown))
    paid.clock.advance(60)
    assert paid.waiting_jobs() == 4
    free = paid.take_in(some_lines(2, "b"))
    assert {one.batch_id for one in paid.dispatch()} == {free.batch_id}
    paid.closer.step()
    assert paid.counts(record.batch_id).failed == 4
    assert paid.counts(free.batch_id).ended == 0


def test_counts_of_an_older_build_have_nothing_unknown(paid):
    """One that doesn't know the column goes on beside this one."""
    record, shard = _one_shard(paid, 2)
    names = (
        "succeeded, failed, cancelled, expired, attempts, input_tokens, output_tokens, cost_nano_usd, wasted_nano_usd"
    )
    insert = text(f"INSERT INTO batch_count (batch_id, writer, {names}) VALUES (:batch, 'old', 1,0,0,0,1,2,3,40,0)")
    insert = insert.bindparams(bindparam("batch", type_=Id))
    paid.database.write(lambda connection: connection.execute(insert, {"batch": record.batch_id}))
    assert paid.counts(record.batch_id).at_most_nano_usd == 40
    paid.record(paid.ran(shard, a_job_ran(0, **UNKNOWN)))
    assert paid.counts(record.batch_id).at_most_nano_usd == 40 + UPPER_NANO_USD
    assert paid.read(spent_nano_usd, [record.batch_id]) == {record.batch_id: 40 + UPPER_NANO_USD}


def test_what_a_dead_worker_may_have_used_is_bounded_by_what_was_asked(paid):
    """By the token it isn't the time that costs: the request's text, and the output that it allows."""
    text = "word " * 100
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 77, "n": 2}
    record = paid.take_in(a_line("a", body=body) + b"\n" + a_line("b", body={"max_tokens": 5}) + b"\n")
    (shard,) = paid.claimed()
    paid.fall_silent()
    paid.run_all()
    paid.fall_silent(LATE_SECONDS + 10)
    lost = [row for row in paid.rows(attempt) if row.outcome == "lost"]
    assert [(row.shard_id, row.cost_nano_usd, row.cost_basis) for row in lost] == [(shard.shard_id, 0, "unknown")] * 2
    first, second = sorted(lost, key=lambda row: row.shard_index)
    output = 77 * 2 * OUT // 1_000
    assert output + len(text) * IN // 1_000 <= first.cost_upper_nano_usd <= output + (len(text) + 200) * IN // 1_000
    assert 5 * OUT // 1_000 < second.cost_upper_nano_usd <= (5 * OUT + 200 * IN) // 1_000
    assert paid.counts(record.batch_id).unknown_nano_usd == sum(row.cost_upper_nano_usd for row in lost)
    assert paid.verified().faults == []


def test_a_lanes_window_bounds_it_where_the_request_says_nothing(make_world):
    engine = EngineSettings(driver="echo", models=(MODEL,), context_tokens=1_024)
    world = make_world(a_lane("vendor", price=BY_TOKEN, engine=engine))
    world.take_in(some_lines(1))
    world.claimed()
    world.fall_silent()
    world.run_all()
    world.fall_silent(LATE_SECONDS + 10)
    (lost,) = [row for row in world.rows(attempt) if row.outcome == "lost"]
    assert 1_024 * OUT // 1_000 < lost.cost_upper_nano_usd <= 1_024 * (OUT + IN) // 1_000


def test_everyone_who_asks_is_told(paid):
    _, shard = _one_shard(paid, 2)
    paid.record(paid.ran(shard, a_job_ran(0, **UNKNOWN), a_job_ran(1, usage=Usage(10, 0, 5))))
    job_id = shard.job_id_at(0)
    story = paid.read(explain, None, job_id)
    assert (story.cost_nano_usd, story.unknown_upper_nano_usd) == (0, UPPER_NANO_USD)
    stands = paid.read(standing, "t", job_id)
    assert (stands.cost_nano_usd, stands.unknown_nano_usd) == (0, UPPER_NANO_USD)
    (row,) = paid.read(summary, ["lane"], Filters())
    assert (row["cost_nano_usd"], row["unknown_upper_nano_usd"], row["usage_unknown"]) == (30_000, UPPER_NANO_USD, 1)


def test_a_call_that_was_cancelled_isnt_said_not_to_have_run(paid):
    _, shard = _one_shard(paid, 1)
    told = {"outcome": Outcome.CANCELLED, "status_code": 0, "message": "cancelled while it ran"}
    paid.record(paid.ran(shard, a_failure(0, ErrorCode.BATCH_CANCELLED, **told | UNKNOWN)))
    ((cost, upper),) = _rows(paid, "cost_nano_usd", "cost_upper_nano_usd")
    assert (cost, upper) == (0, UPPER_NANO_USD)


def test_usage_upper_below_usage_bounds_nothing(paid):
    """A worker's word, like all others: it can't make a bound that is below what is known."""
    _, shard = _one_shard(paid, 1)
    less = a_job_ran(0, usage=Usage(10, 0, 5), usage_basis=UsageBasis.INCONSISTENT, usage_upper=Usage(1, 0, 1))
    paid.record(paid.ran(shard, msgspec.structs.replace(less)))
    assert _rows(paid, *COSTS)[0][:3] == (30_000, 30_000, "list")


def test_a_lane_whose_server_states_no_usage_is_not_taken_for_free(paid):
    """Budgets hold what a job is expected to cost, and lanes are compared by it."""
    _, shard = _one_shard(paid, 4)
    paid.record(paid.ran(shard, *(a_job_ran(index, **UNKNOWN) for index in range(4))))
    vendor = paid.lanes[0]
    (speed,) = paid.read(learned_speeds, [vendor])["vendor"].values()
    assert speed.jobs == 4
    assert expected_cost_nano_usd(vendor, speed) == expected_cost_nano_usd(vendor, None) > 1_000
