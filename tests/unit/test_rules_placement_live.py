"""What only the running broker needs of placement: learned speeds, turns in shards, arrivals by class, silence."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.domain.lane import EngineSettings, PriceMeter, Supply
from broker.rules.placement.dealing import deal
from broker.rules.placement.expecting import Expecting, window_class_s
from broker.rules.placement.facts import expected_cost_nano_usd, facts_of, instances_of
from broker.rules.placement.learning import Sample, SpeedBook
from broker.rules.placement.policy import Policy
from broker.rules.placement.table import LaneTable
from broker.rules.placement.trouble import silence
from broker.rules.placement.turns import Turns
from broker.rules.placement.work import Terms
from tests.unit.builders import MODEL, a_lane, a_price

LANE = a_lane(engine=EngineSettings(driver="echo", models=(MODEL,), concurrency=10), jobs_per_second=2.0, slots=5)
BELIEVED_S = 0.1


def sample(jobs: int, run_s: float, **changes) -> Sample:
    """Jobs that each ran so long, ten at once."""
    fields = {
        "lane": "lane-a", "model": MODEL, "jobs": jobs, "run_s": jobs * run_s, "run_s_squared": jobs * run_s**2,
        "accelerator_s": jobs * run_s / 10,
    }  # fmt: skip
    return Sample(**fields | changes)


def speed_after(book: SpeedBook, now_s: float):
    return book.speed("lane-a", MODEL, now_s)


# ---------------------------------------------------------------------------------------------------------- learning


def test_the_catalog_is_believed_until_jobs_were_seen_and_soon_not_any_more():
    book = SpeedBook([LANE])
    assert speed_after(book, 0).job_s == BELIEVED_S
    book.observe(1, sample(8, 0.2))
    assert speed_after(book, 1).job_s == pytest.approx((BELIEVED_S + 0.02) / 2)
    for second in range(2, 10):
        book.observe(second, sample(100, 0.2))
    assert speed_after(book, 10).job_s == pytest.approx(0.02, rel=0.01)


def test_a_lane_that_slows_ten_times_is_noticed_within_two_looks_and_said_to_be_slower():
    book = SpeedBook([LANE])
    for second in range(60):
        book.observe(second, sample(100, 0.2))
    assert not speed_after(book, 60).is_slower
    book.observe(61, sample(10, 2.0))
    assert speed_after(book, 61).job_s > 2 * 0.02
    book.observe(62, sample(10, 2.0))
    assert speed_after(book, 62).is_slower
    assert speed_after(book, 62).spread_s > 0.02


def test_one_slow_job_among_many_changes_little():
    book = SpeedBook([LANE])
    for second in range(60):
        book.observe(second, sample(100, 0.2))
    book.observe(60, sample(1, 2.0))
    assert speed_after(book, 60).job_s < 1.5 * 0.02


def test_what_made_a_lane_look_slow_is_forgotten_so_that_it_is_tried_again():
    book = SpeedBook([LANE])
    for second in range(60):
        book.observe(second, sample(100, 0.2))
    for second in range(60, 70):
        book.observe(second, sample(10, 4.0))
    slow = speed_after(book, 70).job_s
    assert slow > 0.3
    assert speed_after(book, 370).job_s < slow / 2
    assert speed_after(book, 70 + 3_600).job_s < 0.05


def test_a_lane_hardly_used_is_not_dear_by_the_speed_but_its_jobs_are_by_what_they_took():
    book = SpeedBook([LANE])
    for second in range(60):
        book.observe(second, sample(1, 0.2, accelerator_s=0.2))  # alone on an instance for ten
    found = speed_after(book, 60)
    assert found.job_s < 0.04
    assert found.used_s > 0.15
    assert expected_cost_nano_usd(LANE, found) > 4 * expected_cost_nano_usd(LANE, None) / 5
    assert facts_of(LANE, {MODEL: found}).jobs_per_second[MODEL] == 1 / found.job_s


def test_tokens_cost_what_jobs_had_of_them():
    lane = a_lane(price=a_price(0, meter=PriceMeter.TOKEN, input_token_pico_usd=1_000, output_token_pico_usd=2_000))
    book = SpeedBook([lane])
    book.observe(1, sample(100, 0.2, input_tokens=100_000, output_tokens=5_000))
    assert expected_cost_nano_usd(lane, speed_after(book, 1)) == 1_000 + 2 * 50
    facts = facts_of(lane, {MODEL: speed_after(book, 1)})
    assert facts.job_nano_usd == {MODEL: 1_100}


def test_tokens_that_nobody_stated_are_not_taken_for_none():
    """A server without usage would look like a present: all work would go there, and budgets would hold nothing."""
    price = a_price(0, meter=PriceMeter.TOKEN, input_token_pico_usd=1_000, output_token_pico_usd=2_000)
    silent, half = a_lane(price=price), a_lane(price=price)
    book = SpeedBook([silent])
    book.observe(1, sample(100, 0.2, counted=0))
    assert expected_cost_nano_usd(silent, speed_after(book, 1)) == expected_cost_nano_usd(silent, None) > 1
    book = SpeedBook([half])
    book.observe(1, sample(100, 0.2, counted=50, input_tokens=50_000, output_tokens=2_500))
    book.observe(2, sample(100, 0.2, counted=0))
    assert expected_cost_nano_usd(half, speed_after(book, 2)) == 1_000 + 2 * 50


def test_samples_of_lanes_that_are_gone_are_left_out():
    book = SpeedBook([LANE])
    book.observe(1, sample(10, 5.0, lane="gone"))
    assert speed_after(book, 1).job_s == BELIEVED_S
    assert (instances_of(LANE, 0), instances_of(LANE, 5), instances_of(LANE, 6)) == (0, 1, 2)
    assert facts_of(LANE).supply is Supply.FIXED


# ------------------------------------------------------------------------------------------------------------- turns


class Line(msgspec.Struct, frozen=True):
    """A group that waits, as much as turns need to know of it."""

    tenant: str
    start_by_s: float = 50_000.0


a_group = Line


def by_tenant(waiting: list[Line]) -> dict[str, list[Line]]:
    lines: dict[str, list[Line]] = {}
    for group in sorted(waiting, key=lambda one: one.start_by_s):
        lines.setdefault(group.tenant, []).append(group)
    return lines


def dealt(turns: Turns, waiting: list[Line], shards: int, work_s: float = 1.0) -> list[str]:
    order: list[str] = []

    def give(group: Line) -> float:
        order.append(group.tenant)
        return work_s

    deal(turns.hand(0.0, by_tenant(waiting)), lambda: len(order) < shards, give)
    return order


def test_tenants_take_turns_and_it_is_remembered_whose_it_is():
    turns = Turns()
    waiting = [a_group("big", 10_000.0), a_group("small", 40_000.0)]
    assert [dealt(turns, waiting, 1)[0] for _ in range(6)] == ["big", "small"] * 3


def test_weights_give_more_turns_and_who_comes_anew_has_nothing_saved_up():
    turns = Turns(Policy(tenant_weights={"big": 3.0}))
    waiting = [a_group("big"), a_group("small")]
    assert dealt(turns, waiting, 400).count("big") == 300
    order = dealt(turns, [*waiting, a_group("new")], 30)
    assert 4 <= order.count("new") <= 8


def test_what_must_start_soon_goes_first_and_its_tenant_pays_for_it_later():
    turns = Turns()
    waiting = [a_group("hurried", 60.0), a_group("calm", 40_000.0)]
    assert dealt(turns, waiting, 3) == ["hurried"] * 3
    assert dealt(turns, [a_group("hurried", 40_000.0), a_group("calm", 40_000.0)], 3) == ["calm"] * 3


@given(st.lists(st.integers(1, 5), min_size=2, max_size=6), st.integers(20, 200))
def test_no_tenant_gets_more_than_a_shard_ahead_of_another_that_waits(sizes, shards):
    waiting = [a_group(f"t{number}", 30_000.0 + group) for number, size in enumerate(sizes) for group in range(size)]
    order = dealt(Turns(), waiting, shards)
    counts = [order.count(f"t{number}") for number in range(len(sizes))]
    assert max(counts) - min(counts) <= 1


# ------------------------------------------------------------------------------------------- expectations and silence


def test_windows_fall_into_few_classes_none_longer_than_they_are():
    assert [window_class_s(one) for one in (5, 60, 299, 3_600, 86_399, 90_000)] == [60, 60, 60, 3_600, 43_200, 86_400]


TABLE = LaneTable([facts_of(LANE)])


def test_what_came_is_expected_and_forgotten_after_a_day():
    expecting, terms = Expecting(), Terms(MODEL, MODEL)
    for minute in range(30):
        expecting.add(minute * 60.0, terms, 3_600, 60.0)
    (stream,) = expecting.streams(TABLE, 1_800.0, 300.0, lambda _terms: 10.0, Policy())
    assert stream.recent_rate == pytest.approx(1.0)
    assert stream.start_within_s == 3_590.0
    assert expecting.streams(TABLE, 1_800.0 + 2 * 86_400, 300.0, lambda _terms: 10.0, Policy()) == []


def test_a_lane_is_silent_after_three_seconds_and_three_times_what_a_job_takes():
    assert silence(2.9, 0.1) is None
    assert silence(3.1, 0.1) == "silent: it has work, and nothing was heard of it for 3 s"
    assert silence(100.0, 60.0) is None
    assert silence(181.0, 60.0) is not None
