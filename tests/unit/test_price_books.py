"""Price books: what is refused and in which words, what lanes a price falls to, and which price holds when."""

from __future__ import annotations

from datetime import date

import pytest

from broker.catalog.price_files import read_prices
from broker.catalog.prices import price_of
from broker.domain.errors import UsageError
from broker.domain.lane import Market, PriceMeter, Provider
from broker.domain.usage import Usage
from broker.ledger.prices import BookEntry, PricedLanes, import_book, import_prices, standing_prices
from broker.rules.pricing import cost_nano_usd
from tests.unit.builders import NOW_US, SECOND_US, a_lane, a_price

TODAY = date(2026, 11, 23)
HEADER = (
    "lane,provider,region,accelerator,accelerator_count,unit,on_demand_usd_per_hour,spot_usd_per_hour,"
    "input_usd_per_mtok,output_usd_per_mtok,cached_input_usd_per_mtok,source,as_of"
)
TPU = a_lane(
    "tpu", provider=Provider.GOOGLE_TPU, region="us-central1", accelerator="tpu-v5p", accelerator_count=4,
    market=Market.SPOT,
)  # fmt: skip
H100 = a_lane(
    "h100", provider=Provider.AZURE_GPU, region="eastus", accelerator="h100", accelerator_count=8,
    market=Market.ON_DEMAND,
)  # fmt: skip
ENDPOINT = a_lane("endpoint", price=a_price(0, meter=PriceMeter.TOKEN))
LANES = [TPU, H100, ENDPOINT]


def row(**changes: str) -> str:
    cells = {
        "provider": "azure-gpu", "region": "eastus", "accelerator": "H100", "accelerator_count": "8",
        "on_demand_usd_per_hour": "98.32", "source": "a list", "as_of": "2026-11-01",
    }  # fmt: skip
    return ",".join((cells | changes).get(name, "") for name in HEADER.split(","))


def read(*rows: str):
    return read_prices("book.csv", "\n".join([HEADER, *rows]).encode(), LANES, TODAY)


def hour_usd(price) -> float:
    return price.instance_hour_pico_usd / 1e12


def test_a_price_falls_to_the_lanes_that_it_is_about():
    book = read(row(), row(region="westus", on_demand_usd_per_hour="90"))
    assert {lane: hour_usd(price) for lane, price in book.prices.items()} == {"h100": 98.32}
    assert book.book.startswith("2026-11-01.")
    assert read(row()).book != book.book
    assert read(row()).prices["h100"].version == book.prices["h100"].version


@pytest.mark.parametrize(
    ("unit", "price", "whole"), [("instance", "6.4", 6.4), ("chip", "1.6", 6.4), ("core", "0.8", 6.4), ("", "6.4", 6.4)]
)
def test_chips_and_cores_are_not_slices(unit, price, whole):
    book = read(
        row(
            provider="google-tpu", region="us-central1-a", accelerator="TPU-v5p", accelerator_count="4", unit=unit,
            on_demand_usd_per_hour="", spot_usd_per_hour=price,
        ),
        row(
            lane="tpu", provider="", region="", accelerator="", accelerator_count="", unit=unit,
            spot_usd_per_hour=price, on_demand_usd_per_hour="",
        ),
    )  # fmt: skip
    assert hour_usd(book.prices["tpu"]) == pytest.approx(whole)


def test_tokens_have_prices_of_their_own():
    book = read(row(lane="endpoint", on_demand_usd_per_hour="", input_usd_per_mtok="0.72", output_usd_per_mtok="0.90"))
    assert book.prices["endpoint"].input_token_pico_usd == 720_000
    assert book.prices["endpoint"].output_token_pico_usd == 900_000
    assert book.prices["endpoint"].cached_input_token_pico_usd is None


def test_cached_input_has_a_price_where_the_vendor_has_one(database):
    tokens = {"lane": "endpoint", "on_demand_usd_per_hour": "", "input_usd_per_mtok": "1", "output_usd_per_mtok": "10"}
    plain, cached = read(row(**tokens)), read(row(**tokens, cached_input_usd_per_mtok="0.1"))
    price = cached.prices["endpoint"]
    assert price.cached_input_token_pico_usd == 100_000
    assert price.version != plain.prices["endpoint"].version
    entries = [BookEntry("endpoint", price)]
    database.write(lambda connection: import_book(connection, "b", "book.csv", entries, NOW_US))
    (standing,) = database.read(standing_prices)
    usage = Usage(1_000_000, 900_000, 0)
    assert cost_nano_usd(standing.price, usage) == 190_000_000  # not $1.00
    assert cost_nano_usd(plain.prices["endpoint"], usage) == 1_000_000_000
    assert cost_nano_usd(price, Usage(5, 900, 0)) == 500  # more cached than there is counts as all of it


def test_a_price_says_the_same_version_as_before_there_were_prices_of_cached_input():
    said = price_of("endpoint", None, ("0.72", "0.90"), "a list", "2026-11-01")
    assert said.version == "2026-11-01.e300c1d1"


SPOT = {"on_demand_usd_per_hour": "98.32", "spot_usd_per_hour": "98.32"}
NOT_A_V6E = "for one tpu-v6e an hour, which can't be: 0.15 to 10; is it the price of another unit?"
SLICE = {"provider": "google-tpu", "region": "us-central1", "accelerator": "tpu-v6e", "accelerator_count": "8"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"on_demand_usd_per_hour": "700.0"},
         "on_demand_usd_per_hour: 700.0 is what catalogs write for `not sold here`, not a price"),
        (SPOT, "spot_usd_per_hour: 98.32 is not below the on-demand price 98.32"),
        ({"accelerator_count": "12"}, "accelerator_count: there is no instance with H100 x 12"),
        ({"accelerator_count": "-1"}, "accelerator_count: '-1' is not a number of 1 or more"),
        ({"as_of": "2024-01-01"}, "as_of: 2024-01-01 is stale: 1057 days old; the limit is 365"),
        ({"as_of": "2027-01-01"}, "as_of: 2027-01-01 lies ahead"),
        ({"as_of": "v9 snapshot"}, "as_of: 'v9 snapshot' is no date such as 2026-11-22"),
        ({"region": "eastsu"}, "region: 'eastsu' is unknown at azure-gpu"),
        ({"provider": "aws"}, "provider: 'aws' is unknown; it must be one of google-tpu, azure-gpu, oracle-gpu"),
        ({"source": ""}, "source: is empty; every figure names where it was read"),
        ({"on_demand_usd_per_hour": "-1"}, "on_demand_usd_per_hour: '-1' is not an amount of dollars above 0"),
        ({"on_demand_usd_per_hour": "NaN"}, "on_demand_usd_per_hour: 'NaN' is not an amount of dollars above 0"),
        ({"on_demand_usd_per_hour": ""}, "on_demand_usd_per_hour: is empty, and so is spot_usd_per_hour"),
        ({"lane": "h1000"}, "lane: 'h1000' is no lane of the catalog"),
        ({"unit": "core"}, "unit: h100 is not sold by the core"),
        ({"unit": "gpu"}, "unit: 'gpu' is unknown; a price is of an instance, a chip or a core"),
        # $21.60 is the price of a slice of eight chips.
        (SLICE | {"unit": "chip", "on_demand_usd_per_hour": "21.60"},
         f"on_demand_usd_per_hour: 21.60 per chip is 21.6 {NOT_A_V6E}"),
        (SLICE | {"unit": "instance", "on_demand_usd_per_hour": "", "spot_usd_per_hour": "0.345"},
         f"spot_usd_per_hour: 0.345 per instance is 0.0431 {NOT_A_V6E}"),
        ({"lane": "endpoint"}, "lane: endpoint is paid by the token, not by the hour"),
        ({"cached_input_usd_per_mtok": "1"},
         "cached_input_usd_per_mtok: is of a price by the token, and this row has none"),
        ({"lane": "endpoint", "input_usd_per_mtok": "1", "output_usd_per_mtok": "1", "cached_input_usd_per_mtok": "2"},
         "cached_input_usd_per_mtok: 2 is above the price of other input"),
        ({"lane": "endpoint", "input_usd_per_mtok": "1", "output_usd_per_mtok": "1", "cached_input_usd_per_mtok": "x"},
         "cached_input_usd_per_mtok: 'x' is not an amount of dollars above 0"),
        ({"lane": "h100", "input_usd_per_mtok": "1", "output_usd_per_mtok": "1"},
         "lane: h100 is paid by the hour, not by the token"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_refused_in_one_sentence(changes, sentence):
    with pytest.raises(UsageError) as caught:
        read(row(region="westus"), row(**changes))
    assert str(caught.value) == f"book.csv, row 3, {sentence}"


def test_doubles_and_files_that_are_no_books_are_refused():
    with pytest.raises(UsageError, match="row 3, row: is of the same thing as row 2: azure-gpu, eastus, H100, 8"):
        read(row(), row(on_demand_usd_per_hour="97"))
    with pytest.raises(UsageError, match="row 2, row: has more or fewer cells than the header"):
        read(row() + ",1,2,3")
    with pytest.raises(UsageError, match="has no prices"):
        read()
    with pytest.raises(UsageError, match="none of its 1 rows is the price of a lane of the catalog"):
        read(row(region="westus"))
    with pytest.raises(UsageError, match="has the column 'x'"):
        read_prices("book.csv", b"source,as_of,x\n", LANES, TODAY)
    with pytest.raises(UsageError, match="lacks the column as_of"):
        read_prices("book.csv", b"source,lane\n", LANES, TODAY)
    with pytest.raises(UsageError, match="is not a CSV file in UTF-8"):
        read_prices("book.csv", b"\xff\xfe", LANES, TODAY)


def in_force(world, lanes, at_us):
    priced = PricedLanes(lanes)
    world.read(priced.look)
    return {str(lane.name): lane.price.version for lane in priced.all_at(at_us)}


def test_a_price_holds_from_its_import_until_the_next_and_is_never_changed(make_world):
    cheap, dear = a_price(1_000, version="v1"), a_price(2_000, version="v2")
    lane = a_lane(price=cheap)
    world = make_world(lane)
    world.database.write(lambda one: import_book(one, "b1", "f", [BookEntry("lane-a", dear)], NOW_US + 10 * SECOND_US))
    assert in_force(world, [lane], NOW_US + 11 * SECOND_US) == {"lane-a": "v1"}  # until all processes have read it
    assert in_force(world, [lane], NOW_US + 12 * SECOND_US) == {"lane-a": "v2"}
    world.database.write(lambda one: import_prices(one, [lane], NOW_US + 20 * SECOND_US))  # a restart
    assert in_force(world, [lane], NOW_US + 30 * SECOND_US) == {"lane-a": "v2"}
    world.database.write(lambda one: import_book(one, "b2", "f", [BookEntry("lane-a", cheap)], NOW_US + 40 * SECOND_US))
    assert in_force(world, [lane], NOW_US + 50 * SECOND_US) == {"lane-a": "v1"}
    assert [one.price.version for one in world.read(standing_prices)] == ["v1", "v2", "v1"]
    assert in_force(world, [lane], NOW_US + 13 * SECOND_US) == {"lane-a": "v2"}  # what was is still known


def test_a_catalog_price_that_is_changed_back_holds_again(make_world):
    first, second = a_price(1_000, version="v1"), a_price(2_000, version="v2")
    lane, other = a_lane("lane-a", price=first), a_lane("other", price=a_price(5_000))
    world = make_world(lane, other)

    def start(price, seconds):
        lanes = [a_lane("lane-a", price=price), other]
        world.database.write(lambda one: import_prices(one, lanes, NOW_US + seconds * SECOND_US))

    for seconds, price in ((0, first), (0, first), (10, second), (20, first), (20, first), (15, second)):
        start(price, seconds)
    said = [(one.price.version, one.from_us - NOW_US) for one in world.read(standing_prices) if one.lane == "lane-a"]
    # The last on a clock that was set back.
    assert said == [("v1", 0), ("v2", 10 * SECOND_US), ("v1", 20 * SECOND_US), ("v2", 20 * SECOND_US + 1)]
    assert in_force(world, [lane, other], NOW_US + 19 * SECOND_US) == {"lane-a": "v2", "other": other.price.version}
    assert in_force(world, [lane, other], NOW_US + 30 * SECOND_US) == {"lane-a": "v2", "other": other.price.version}


def test_what_was_imported_holds_until_the_catalog_says_something_else(make_world):
    first, second, imported = (a_price(n, version=f"v{n}") for n in (1, 2, 3))
    world = make_world(a_lane(price=first))
    entries = [BookEntry("lane-a", imported)]
    world.database.write(lambda one: import_book(one, "b1", "f", entries, NOW_US + 10 * SECOND_US))
    for seconds, price, holds in ((20, first, "v3"), (30, second, "v2"), (40, second, "v2"), (50, first, "v1")):
        lanes = [a_lane(price=price)]
        now_us = NOW_US + seconds * SECOND_US
        world.database.write(lambda one, lanes=lanes, now_us=now_us: import_prices(one, lanes, now_us))
        assert in_force(world, lanes, now_us) == {"lane-a": holds}
