"""Lines of all sizes in one file: a long one neither bars lanes to the short ones nor holds them up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.database.tables import batch_refusal
from broker.domain.job import Constraints
from broker.rules.sharding import fits_message, jobs_per_shard
from broker.rules.size_classes import size_class, size_limits
from tests.unit.builders import MODEL, ONE_PLACE, World, a_job_ran, a_lane, a_line, a_price, a_span, some_lines

SMALL = a_lane("small", message_bytes_max=180_000, slots=4)
BIG = a_lane("big", price=a_price(7_200_000_000), slots=2)
PARKING = a_lane("parking", message_bytes_max=250_000, parked_bytes_max=2_000_000)
OTHER = a_lane("other", models=("m2",), message_bytes_max=50_000)


def a_long_line(custom_id: str, body_bytes: int = 500_000) -> bytes:
    return a_line(custom_id, body={"messages": [{"role": "user", "content": "x" * body_bytes}]}) + b"\n"


def test_what_no_lane_allowed_carries_is_refused_and_the_rest_runs(make_world):
    world = make_world(SMALL, BIG)
    only_small = Constraints(lanes=("small",))
    record = world.take_in(a_long_line("huge") + some_lines(200), constraints=only_small)
    (refused,) = world.rows(batch_refusal)
    assert (refused.custom_id, refused.error_code) == ("huge", "line_too_large")
    assert refused.message.endswith("what the lanes allowed can carry is 178,912 at most")
    assert world.batch(record.batch_id).accepted_jobs == 200
    assert sum(shard.jobs_count for shard in world.dispatch()) == 200


@pytest.mark.parametrize("place", [0, 100, 200])
def test_a_long_line_goes_where_it_fits_and_its_neighbours_where_it_is_cheapest(make_world, place):
    world = make_world(SMALL, BIG)
    lines = some_lines(200).splitlines(keepends=True)
    world.take_in(b"".join([*lines[:place], a_long_line("huge"), *lines[place:]]))
    assert sorted((span.jobs_count, span.body_bytes_max > 500_000) for span in world.waiting()) == [
        (1, True),
        (200, False),
    ]
    shards = world.dispatch()
    assert {(shard.lane, shard.jobs_count) for shard in shards} == {("big", 1), ("small", 200)}
    reasons = {shard.lane: shard.reason for shard in shards}
    assert reasons["small"] == "the cheapest of 2 allowed lanes"
    assert reasons["big"] == "the only lane allowed, of those whose messages carry 500,055 bytes"


def test_long_lines_whose_lane_is_full_hold_up_none_behind_them(make_world):
    world = make_world(SMALL, a_lane("big", price=BIG.price, slots=1, shard_jobs_max=1, engine=ONE_PLACE))
    world.take_in(b"".join(a_long_line(f"huge{n}") for n in range(5)) + some_lines(50))
    shards = world.claimed()
    assert [shard.lane for shard in shards].count("big") == 3
    assert sum(shard.jobs_count for shard in shards if shard.lane == "small") == 50
    assert world.waiting_jobs() == 2
    world.record(*(world.ran(shard, *map(a_job_ran, range(shard.jobs_count))) for shard in shards))
    world.run_all()
    assert world.waiting_jobs() == 0


def test_what_no_lane_carries_any_more_waits_by_itself(make_world):
    world = make_world(SMALL, BIG)
    world.take_in(b"".join(a_long_line(f"huge{n}") for n in range(3)) + some_lines(20))
    smaller = World(world.database, [SMALL], world.folder)
    smaller.clock.advance(1)
    assert sum(shard.jobs_count for shard in smaller.dispatch()) == 20
    assert smaller.waiting_jobs() == 3
    smaller.clock.advance(90_000)
    smaller.closer.step()
    assert smaller.waiting_jobs() == 0  # expired


def test_a_cost_limit_says_nothing_of_sizes():
    limits = size_limits(MODEL, '{"max_cost_usd":"0.000000001"}', [SMALL, BIG])
    assert limits == size_limits(MODEL, "{}", [SMALL, BIG])
    assert limits[-1] > 3_000_000


def test_without_a_lane_there_is_one_class():
    assert size_limits(MODEL, '{"lanes":["none"]}', [SMALL, BIG]) == ()
    assert size_limits("m2", "{}", [SMALL, OTHER]) == size_limits("m2", "{}", [OTHER])
    assert size_class(7, ()) == size_class(7_000_000, ()) == 0


sizes = st.integers(1, 3_000_000)


@given(st.sets(st.sampled_from(range(3))), sizes, sizes)
def test_bodies_of_one_class_are_carried_alike(chosen, one, other):
    lanes = [(SMALL, BIG, PARKING)[index] for index in chosen]
    limits = size_limits(MODEL, "{}", lanes)
    if size_class(one, limits) != size_class(other, limits):
        return
    for lane in lanes:
        assert fits_message(lane, one) == fits_message(lane, other)
        shortest = jobs_per_shard(lane, a_span(body_bytes_max=1))
        first, second = (jobs_per_shard(lane, a_span(body_bytes_max=size)) for size in (one, other))
        assert (first == shortest) == (second == shortest)
