"""Pricing against exact fractions, and the time-sweep against the promise that shares sum to the time."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from broker.domain.lane import PriceMeter
from broker.domain.usage import Usage
from broker.rules.attribution import TimeSweep
from broker.rules.pricing import accelerator_cost_nano_usd, cost_nano_usd, expected_job_cost_nano_usd
from tests.unit.builders import a_price

_prices = st.integers(0, 10**12).map(lambda pico: a_price(0, instance_hour_pico_usd=pico))


@given(_prices, st.integers(0, 10**13))
def test_accelerator_time_is_priced_to_the_nearest_nano_dollar(price, accelerator_us):
    exact = Fraction(price.instance_hour_pico_usd * accelerator_us, 3_600_000_000 * 1_000)
    assert accelerator_cost_nano_usd(price, accelerator_us) == round(exact)  # round() of a Fraction is half to even
    assert cost_nano_usd(price, Usage(9, 9, 9, 9, accelerator_us)) == round(exact)


@given(st.integers(0, 10**8), st.integers(0, 10**8), st.integers(0, 10**8), st.integers(0, 10**8))
def test_tokens_are_priced_to_the_nearest_nano_dollar(inputs, outputs, input_price, output_price):
    price = a_price(meter=PriceMeter.TOKEN, input_token_pico_usd=input_price, output_token_pico_usd=output_price)
    exact = Fraction(inputs * input_price + outputs * output_price, 1_000)
    assert cost_nano_usd(price, Usage(inputs, 0, outputs, 0, 10**9)) == round(exact)


@given(*[st.integers(0, 10**8)] * 5)
def test_cached_input_is_priced_by_itself_where_it_has_a_price(inputs, cached, input_price, cached_price, outputs):
    fields = {"meter": PriceMeter.TOKEN, "input_token_pico_usd": input_price, "output_token_pico_usd": 7}
    price = a_price(**fields, cached_input_token_pico_usd=cached_price)
    part = min(cached, inputs)
    exact = Fraction((inputs - part) * input_price + part * cached_price + outputs * 7, 1_000)
    assert cost_nano_usd(price, Usage(inputs, cached, outputs)) == round(exact)
    assert cost_nano_usd(a_price(**fields), Usage(inputs, cached, outputs)) == round(
        Fraction(inputs * input_price + outputs * 7, 1_000)
    )


def test_what_a_job_is_expected_to_cost():
    assert expected_job_cost_nano_usd(a_price(), 4.0) == 250_000
    assert expected_job_cost_nano_usd(a_price(), 0.5) == 2_000_000
    assert expected_job_cost_nano_usd(a_price(0, meter=PriceMeter.TOKEN), 1.0) == 0


# -------------------------------------------------------------------------------------------------- attribution

_jobs = st.lists(
    st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)).map(lambda pair: (min(pair), max(pair))),
    min_size=1,
    max_size=30,
)


def _shares(jobs, order):
    """Each job's share, the jobs' beginnings and ends taken in time's order and, where equal, in `order`."""
    sweep, marks, shares = TimeSweep(), {}, {}
    events = [(at, is_end, job) for job in order for is_end, at in enumerate(jobs[job])]
    for at, is_end, job in sorted(events, key=lambda event: event[:2]):
        if is_end:
            shares[job] = sweep.end(marks[job], at)
        else:
            marks[job] = sweep.begin(at)
    return [shares[job] for job in range(len(jobs))], sweep.busy_us


def _busy_ns(jobs):
    busy, until = 0, 0
    for began, ended in sorted(jobs):
        busy += max(0, ended - max(began, until))
        until = max(until, ended)
    return busy


@given(_jobs, st.randoms())
def test_shares_are_fair_parts_of_the_time_in_any_order(jobs, random):
    shares, busy_us = _shares(jobs, range(len(jobs)))
    assert busy_us == _busy_ns(jobs) // 1_000
    assert sum(shares) <= _busy_ns(jobs) / 1_000
    assert sum(shares) >= _busy_ns(jobs) / 1_000 - len(jobs) * 1.001
    assert all(0 <= share <= (ended - began) // 1_000 for share, (began, ended) in zip(shares, jobs, strict=True))
    order = list(range(len(jobs)))
    random.shuffle(order)
    assert _shares(jobs, order) == (shares, busy_us)


@given(st.integers(1, 50), st.integers(1, 10**9))
def test_jobs_that_ran_together_shared_alike(count, length_ns):
    shares, _ = _shares([(0, length_ns)] * count, range(count))
    assert len(set(shares)) == 1
    assert abs(shares[0] - length_ns / 1_000 / count) <= 1.001


def test_each_instant_is_divided_among_the_jobs_of_that_instant():
    # 0..4 ms a alone, 4..8 a and b, 8..10 b alone, then nobody, then c alone.
    shares, busy_us = _shares([(0, 8_000_000), (4_000_000, 10_000_000), (20_000_000, 21_000_000)], range(3))
    assert (shares, busy_us) == ([6_000, 4_000, 1_000], 11_000)


def test_a_clock_that_runs_back_takes_nothing_away():
    sweep = TimeSweep()
    mark = sweep.begin(5_000_000)
    assert sweep.end(mark, 1_000_000) == 0
    assert sweep.busy_us == 0
