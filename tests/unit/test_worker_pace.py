"""How much an engine is sent: the ramp, limits found by refusals, rates, and trouble; on a clock that jumps."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.domain.errors import ErrorCode
from tests.unit.paced import AtOnce, Bucket, Hanging, Lane, Server, Several, SickFor, Sliding, Window
from tests.unit.virtual_time import run_virtually
from workers.pace import PAUSE_MAX_S, RAMP_S, TROUBLE_ANSWERS, Pace

BUSY, FAILED = ErrorCode.ENGINE_BUSY, ErrorCode.ENGINE_FAILED
LINES = 300


def sent(make, lines=LINES, **options):
    """The lane after it has done all lines, and how long that took."""

    async def case():
        lane = Lane(make(), **options)
        return lane, await lane.work(lines)

    return run_virtually(case)


@pytest.mark.parametrize("retry_after_s", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("answer_s", [0.005, 0.05, 0.3, 3.0])
def test_a_server_that_takes_four_at_once_gets_four(answer_s, retry_after_s):
    lane, took_s = sent(lambda: AtOnce(4, answer_s=answer_s, retry_after_s=retry_after_s))
    assert lane.server.calls <= 1.1 * LINES
    assert lane.handed_back == []
    assert took_s < LINES / 4 * answer_s + 15.0  # and it is kept busy


@pytest.mark.parametrize(
    "kind", [lambda: AtOnce(4, answer_s=0.3, refusal_s=0.1), lambda: Sliding(10, answer_s=0.3, refusal_s=0.1)]
)
def test_a_server_far_away_whose_refusals_come_late_gets_hardly_more(kind):
    lane, _ = sent(kind)
    assert lane.server.calls <= 1.1 * LINES


RATES = {
    "window": lambda **options: Window(10, **options),
    "late window": lambda **options: Window(10, offset_s=0.95, **options),
    "sliding": lambda **options: Sliding(10, **options),
    "bucket": lambda **options: Bucket(10, **options),
    "empty bucket": lambda **options: Bucket(10, size=1, **options),
}


@pytest.mark.parametrize("retry_after_s", [0.0, 1.0])
@pytest.mark.parametrize("answer_s", [0.005, 0.05, 0.3])
@pytest.mark.parametrize("kind", RATES)
def test_a_server_that_takes_ten_a_second_gets_about_ten(kind, answer_s, retry_after_s):
    lane, took_s = sent(lambda: RATES[kind](answer_s=answer_s, retry_after_s=retry_after_s))
    assert lane.server.calls <= 1.1 * LINES
    assert lane.handed_back == []
    assert took_s < 4 * LINES / 10


@pytest.mark.parametrize("kind", RATES)
def test_a_rate_is_known_after_few_refusals_where_answers_take_a_while(kind):
    """Each success of a call from before the first refusal lets another be sent, and none of these shows a limit."""
    lane, _ = sent(lambda: RATES[kind](answer_s=0.2), lines=150)
    assert lane.server.calls <= 1.1 * 150


def test_after_a_pause_that_was_asked_for_calls_begin_one_by_one():
    pace = full(8)
    marks = [pace.begin(1.0) for _ in range(5)]
    pace.succeeded(1.0)
    pace.failed(marks[1], BUSY, 2.0, 1.0)
    assert (pace.limit, pace.sends_at_s) == (1, 3.0)
    for _ in range(3):
        pace.succeeded(1.5)
    for second, limit in ((2.9, 1), (3.0 + RAMP_S, 2), (3.0 + 2 * RAMP_S, 3)):
        pace.step(second)
        assert pace.limit == limit  # and three were under way when it was refused


@pytest.mark.parametrize(("count", "seconds"), [(10, 120), (3, 600), (2, 900)])
def test_servers_of_which_one_refuses_all_are_not_sent_less_and_less(count, seconds):
    """However slowly they are asked, each so-manieth call is refused: that it slows down for ever helps nobody."""
    lane, took_s = sent(lambda: Several(count, code=ErrorCode.ENGINE_UNAVAILABLE), lines=1_000)
    assert took_s < seconds
    assert lane.server.calls <= 1.1 * 1_000 * count / (count - 1)


@pytest.mark.parametrize("kind", [lambda: Window(1), lambda: Sliding(3), lambda: Bucket(1, size=1)])
def test_a_low_rate_is_kept_to_all_the_same(kind):
    lane, took_s = sent(kind, lines=200)
    assert lane.server.calls <= 1.1 * 200
    assert took_s < 260


def test_503_is_a_limit_too_where_others_are_served():
    lane, _ = sent(lambda: AtOnce(4, code=ErrorCode.ENGINE_UNAVAILABLE))
    assert (lane.server.calls <= 1.1 * LINES, lane.handed_back) == (True, [])


def test_a_large_limit_that_was_narrowed_is_found_again():
    lane, _ = sent(lambda: AtOnce(64, answer_s=0.5), lines=3_000)
    assert lane.server.most_inside == 64
    assert lane.throttle.pace.limit > 50


def test_a_well_engine_is_full_at_once_and_costs_nothing_then():
    lane, _ = sent(lambda: Server(answer_s=0.6), lines=256, shard_jobs=256)
    assert lane.server.most_inside == 256  # within the first answer's time
    assert lane.throttle.pace.is_calm


@pytest.mark.parametrize("code", [BUSY, FAILED, ErrorCode.ENGINE_STARTING, ErrorCode.ENGINE_UNREACHABLE])
@pytest.mark.parametrize("retry_after_s", [0.0, 8.0])
def test_a_sick_server_gets_a_handful_of_calls_and_is_full_again_when_it_is_well(code, retry_after_s):
    lane, took_s = sent(lambda: SickFor(8.0, code=code, retry_after_s=retry_after_s))
    assert lane.server.refused <= 8
    assert set(lane.handed_back) <= {code, None}  # None: that was its only job
    assert code in lane.handed_back
    assert lane.server.most_inside >= 128
    assert took_s < 20.0


def test_calls_that_hang_are_timeouts_each_a_call():
    lane, _ = sent(lambda: Hanging(8.0), places=64)
    assert lane.server.calls <= LINES + 64 + 8


# ------------------------------------------------------------------------------------------------------ the rule alone


def test_the_ramp_doubles_until_all_places_are_used():
    pace, now_s, limits = Pace(256), 100.0, [1]
    pace.begin(now_s)
    while pace.changes_at_s != math.inf:
        now_s = pace.changes_at_s
        pace.step(now_s)
        limits.append(pace.limit)
    assert limits == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert now_s - 100.0 < 0.4
    assert pace.is_calm


def test_a_refusal_leaves_as_many_places_as_were_not_refused():
    pace = full(8)
    marks = [pace.begin(1.0) for _ in range(8)]
    for _ in range(3):
        pace.failed(marks.pop(), BUSY, 0.0, 1.01)
    assert pace.limit == pace.in_flight == 5
    assert pace.trouble is None


def test_sixty_refusals_of_one_burst_are_one_piece_of_news():
    pace = full(64)
    marks = [pace.begin(1.0) for _ in range(64)]
    pace.succeeded(1.0)
    for mark in marks[1:61]:
        pace.failed(mark, BUSY, 0.0, 1.01)
    assert (pace.trouble, pace.limit) == (None, 3)


def test_three_answers_in_a_row_are_trouble_and_a_success_between_is_none():
    pace = full(8)
    for code in (FAILED, FAILED, None, FAILED, FAILED, ErrorCode.ENGINE_TIMEOUT):
        mark = pace.begin(1.0)
        assert pace.trouble is None
        if code:
            pace.failed(mark, code, 0.0, 1.0)
        else:
            pace.succeeded(1.0)
    assert pace.trouble is ErrorCode.ENGINE_TIMEOUT
    pace.begin(2.0)
    pace.succeeded(2.0)
    assert (pace.trouble, pace.limit) == (None, 1)  # the ramp begins again
    pace.step(pace.changes_at_s)
    assert pace.limit == 2


@pytest.mark.parametrize("code", [ErrorCode.ENGINE_REFUSED, ErrorCode.ENGINE_UNSUITED, ErrorCode.ENGINE_DIED])
def test_what_speaks_of_the_job_is_no_trouble_of_the_server(code):
    pace = full(8)
    for _ in range(9):
        pace.failed(pace.begin(1.0), code, 0.0, 1.0)
    assert pace.trouble is None


def test_a_server_that_asks_for_long_is_left_to_the_broker_and_one_that_asks_for_a_moment_is_waited_for():
    pace = full(8)
    marks = [pace.begin(1.0) for _ in range(3)]
    pace.succeeded(1.0)
    pace.failed(marks[1], BUSY, 2.0, 1.0)
    assert (pace.trouble, pace.sends_at_s) == (None, 3.0)
    pace.failed(marks[2], BUSY, 60.0, 1.0)
    assert pace.trouble is BUSY


def test_an_outage_teaches_no_limit():
    pace = full(64)
    marks = [pace.begin(1.0) for _ in range(64)]
    for mark in marks:
        pace.failed(mark, BUSY, 0.0, 1.01)
    while pace.trouble is None:
        pace.failed(pace.begin(2.0), BUSY, 0.0, 2.0)
    pace.begin(9.0)
    pace.succeeded(9.0)
    for _ in range(6):
        pace.step(pace.changes_at_s)
    assert (pace.limit, pace.interval_s) == (64, 0.0)


def full(places):
    pace = Pace(places)
    pace.begin(0.0)
    pace.succeeded(0.0)
    while pace.changes_at_s != math.inf:
        pace.step(pace.changes_at_s)
    assert pace.limit == places
    return pace


CODES = [None, BUSY, FAILED, ErrorCode.ENGINE_UNAVAILABLE, ErrorCode.ENGINE_REFUSED, ErrorCode.ENGINE_DIED]
ENDS_TROUBLE = (None, ErrorCode.ENGINE_REFUSED)
STEPS = st.tuples(st.sampled_from(["begin", "end", "let_go", "wait"]), st.sampled_from(CODES), st.floats(0, 3))


@given(st.integers(1, 40), st.lists(STEPS, max_size=80))
def test_whatever_a_server_answers_the_limit_is_sound_and_it_recovers(places, steps):
    pace, now_s, marks = Pace(places), 5.0, []
    for what, code, amount in steps:
        before = pace.trouble
        if what == "begin":
            marks.append(pace.begin(now_s))
        elif what == "wait":
            now_s += amount
            pace.step(now_s)
        elif marks:
            _end(pace, marks.pop(0), None if what == "let_go" else code, now_s, is_cancelled=what == "let_go")
        assert before is None or pace.trouble is not None or (what == "end" and code in ENDS_TROUBLE)
        assert 1 <= pace.limit <= places
        assert pace.in_flight == len(marks)
        assert pace.sends_at_s <= now_s + PAUSE_MAX_S + 1e-6
        assert not pace.is_calm or (pace.limit == places and pace.trouble is None)
    for _ in marks:
        pace.let_go()
    _serve_well(pace, now_s)
    assert pace.is_calm
    assert pace.limit == places


def _end(pace, mark, code, now_s, *, is_cancelled):
    if is_cancelled:
        pace.let_go()
    elif code is None:
        pace.succeeded(now_s)
    else:
        pace.failed(mark, code, 0.0, now_s)


def _serve_well(pace, now_s):
    """From now on all goes well: it gets all of its places again."""
    for _ in range(4_000):
        now_s = max(now_s + 0.05, pace.sends_at_s)
        calls = [pace.begin(now_s) for _ in range(1 if pace.interval_s else pace.limit)]
        for _ in calls:
            pace.succeeded(now_s)
        pace.step(now_s)
        if pace.is_calm:
            return


def test_a_throttle_pauses_and_goes_on_with_one_probe_at_a_time():
    async def case():
        lane = Lane(SickFor(1.0, code=FAILED), places=8)
        throttle = lane.throttle
        for _ in range(TROUBLE_ANSWERS):
            throttle.failed(throttle.begin(), FAILED, 0.0)
        assert throttle.trouble is FAILED
        lane.server.began_s = asyncio.get_running_loop().time() - 10.0  # it is well again, and slow
        lane.server.answer_s = 1.0
        lane.waiting.extend(range(100))
        first = asyncio.ensure_future(lane._shard(list(range(10))))
        await asyncio.sleep(0.1)
        assert (lane.server.inside, throttle.is_probed) == (1, True)
        await lane._shard(list(range(10, 20)))  # comes back at once, and nothing of it was sent
        assert (lane.server.calls, lane.handed_back) == (1, [FAILED])
        await first
        assert (lane.done, throttle.trouble, throttle.is_probed) == (10, None, False)

    run_virtually(case)


def test_a_throttle_lets_no_probe_through_before_the_time_that_the_server_names():
    async def case():
        lane, other = Lane(SickFor(0.0), places=8), Lane(SickFor(0.0), places=8)
        for throttle in (lane.throttle, other.throttle):
            throttle.failed(throttle.begin(), BUSY, 3.0 if throttle is lane.throttle else 0.0)
            for _ in range(TROUBLE_ANSWERS):
                throttle.failed(throttle.begin(), FAILED, 0.0)
        for one in (lane, other):
            one.waiting.extend(range(100))
            await one._shard(list(range(10)))
        assert (lane.server.calls, lane.handed_back) == (0, [FAILED])
        assert (other.server.calls, other.handed_back) == (10, [])  # nobody asked for time
        await asyncio.sleep(3.1)
        await lane._shard(list(range(10)))
        assert (lane.server.calls, lane.throttle.trouble, lane.throttle.may_probe) == (10, None, True)

    run_virtually(case)
