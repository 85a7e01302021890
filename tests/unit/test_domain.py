from __future__ import annotations

import time
import uuid
from decimal import ROUND_HALF_EVEN, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.domain.ids import (
    format_id,
    id_at,
    id_offset,
    ids_of_span,
    new_id,
    new_span,
    parse_id,
    time_us_of,
)
from broker.domain.money import divide_half_even, format_usd, nano_from_usd, pico_from_usd
from broker.domain.shard import Bitmap


@pytest.mark.parametrize("mint", [new_id, new_span])
def test_ids_are_uuids_of_version_7_and_say_when_they_were_made(mint):
    before_us = time.time_ns() // 1_000_000 * 1_000
    made = [mint() for _ in range(64)]
    after_us = time.time_ns() // 1_000
    for one in made:
        read = uuid.UUID(bytes=one)
        assert (read.version, read.variant) == (7, uuid.RFC_4122)
        assert before_us <= time_us_of(one) <= after_us
    assert len(set(made)) == 64


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_member_of_a_span_is_found_at_its_place(here, there):
    first = new_span()
    member = id_at(first, here)
    assert id_offset(first, member) == here
    assert id_offset(id_at(first, there), member) == here - there
    assert (member < id_at(first, there)) == (here < there)
    assert uuid.UUID(bytes=member).version == 7


def test_a_span_lists_its_members_in_order_from_any_of_them():
    first = new_span()
    members = ids_of_span(first, 300)
    assert members == sorted(set(members)) == [id_at(first, place) for place in range(300)]
    assert ids_of_span(members[256], 44) == members[256:]


def test_ids_of_two_spans_have_no_distance():
    with pytest.raises(ValueError, match="is not in the span of"):
        id_offset(new_span(), new_span())


def test_an_id_is_read_back_in_each_of_its_forms():
    value = new_id()
    for text in (format_id("job", value), value.hex(), str(uuid.UUID(bytes=value))):
        assert parse_id("job", text) == value


@pytest.mark.parametrize("text", ["", "job_", "job_12", "batch_" + "0" * 32, "job_" + "g" * 32])
def test_what_is_no_id_is_named_in_the_refusal(text):
    with pytest.raises(ValueError, match="is not a job id") as caught:
        parse_id("job", text)
    assert repr(text) in str(caught.value)


@given(st.integers(-(10**24), 10**24), st.integers(1, 10**15))
def test_division_rounds_half_to_even(numerator, denominator):
    with_decimals = Decimal(numerator) / Decimal(1)  # exact
    whole, rest = divmod(with_decimals.as_integer_ratio()[0], denominator)
    exact = Decimal(2 * rest - denominator)
    expected = whole + (exact > 0 or (exact == 0 and whole % 2 == 1))
    assert divide_half_even(numerator, denominator) == expected


@pytest.mark.parametrize("half", range(-9, 10, 2))
def test_a_tie_goes_to_the_even_neighbour_as_decimal_says(half):
    assert divide_half_even(half, 2) == int((Decimal(half) / 2).quantize(Decimal(1), ROUND_HALF_EVEN))


@given(st.integers(0, 9_223_372_036 * 10**9))
def test_an_amount_shown_is_the_amount_read(amount):
    assert nano_from_usd(format_usd(amount).removeprefix("$").replace(",", "")) == amount


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "$0.00"),
        (1, "$0.000000001"),
        (-250_000_000, "-$0.25"),
        (1_234_000_000_000, "$1,234.00"),
        (500_000_000, "$0.50"),
    ],
)
def test_an_amount_is_shown_to_people(amount, text):
    assert format_usd(amount) == text


def test_amounts_are_exact_in_their_unit():
    assert nano_from_usd("0.000000001") == 1
    assert pico_from_usd("0.000000000001") == 1
    assert pico_from_usd("2.70") == 2_700_000_000_000
    assert nano_from_usd("9223372036.0") == 9_223_372_036_000_000_000


@pytest.mark.parametrize(
    ("read", "text", "why"),
    [
        (nano_from_usd, "0.0000000001", "more decimals than the 9"),
        (pico_from_usd, "0.0000000000001", "more decimals than the 12"),
        (nano_from_usd, "1." + "0" * 40 + "1", "more decimals than the 9"),
        (nano_from_usd, "1e999999999", "is more than"),
        (nano_from_usd, "9223372037", "is more than"),
        (nano_from_usd, "-1", "of 0 or more"),
        (nano_from_usd, "nan", "of 0 or more"),
        (nano_from_usd, "inf", "of 0 or more"),
        (nano_from_usd, "", "not an amount in dollars"),
        (nano_from_usd, "1,5", "not an amount in dollars"),
    ],
)
def test_other_amounts_are_refused_by_name(read, text, why):
    with pytest.raises(ValueError, match=why) as caught:
        read(text)
    assert repr(text) in str(caught.value)


@given(st.sets(st.integers(0, 600)), st.integers(0, 700))
def test_a_bitmap_is_a_set_that_travels(indices, count):
    bitmap = Bitmap.of(sorted(indices))
    again = Bitmap(bitmap.to_bytes())
    assert len(again) == len(indices)
    assert again.missing(count) == [index for index in range(count) if index not in indices]
    assert all((index in again) == (index in indices) for index in range(count))


def test_an_empty_bitmap_is_no_bytes_and_adding_twice_adds_once():
    assert Bitmap().to_bytes() == b""
    bitmap = Bitmap()
    bitmap.add(9)
    bitmap.add(9)
    assert (len(bitmap), bitmap.to_bytes()) == (1, b"\x00\x02")
