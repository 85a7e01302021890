"""Room on a lane: who goes in line for its slots, who beside them, and how much."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.rules.placement.rooms import Entry, LaneRoom, shares_of

FULL_SHARD = 640


def a_room(**changes) -> LaneRoom:
    """Two instances with two slots each, and 64 places together."""
    return LaneRoom(**{"slots": 4, "slots_each": 2, "places": 64, "is_shared": True} | changes)


def a_full_room(**changes) -> LaneRoom:
    room = a_room(**changes)
    while room.free:
        room.take("large", FULL_SHARD, beside=False)
    return room


def fill(room, jobs_each, *, alone=False):
    """How many shards of so many jobs a tenant alone gets into the line."""
    shards = 0
    while entry := room.entry("t", 1.0):
        assert not entry.beside
        room.take("t", min(jobs_each, entry.jobs_max), beside=False, alone=alone)
        shards += 1
    return shards


def test_a_tenant_alone_gets_a_job_for_each_place_and_two_shards_for_each_slot_behind_and_goes_beside_nothing():
    assert fill(a_room(is_shared=False), 1) == 64 + 8
    assert fill(a_room(is_shared=False), 64) == 1 + 8
    assert fill(a_room(is_shared=False), FULL_SHARD) == 8  # the first has jobs that wait, too


def test_no_more_jobs_wait_than_it_is_worth_and_none_are_sent_for_the_sake_of_a_few():
    room = a_room(is_shared=False, ahead=32, least=8)
    assert room.entry("t", 1.0) == Entry(beside=False, jobs_max=64 + 32)
    room.take("t", 64 + 24, beside=False)
    assert room.entry("t", 1.0) == Entry(beside=False, jobs_max=8)
    room.take("t", 1, beside=False)
    assert room.entry("t", 1.0) is None


def test_a_shard_of_which_a_straggler_is_left_counts_as_one_job():
    room = a_room(is_shared=False)
    for _ in range(63):
        room.take("t", 1, beside=False)  # what is left of each
    assert room.waiting == []
    assert room.entry("t", 1.0)


def test_a_suspect_takes_all_places_of_an_engine():
    assert fill(a_room(is_shared=False, ahead=64), 1, alone=True) == 4  # two have an engine each, two wait
    room = a_room(is_shared=False)
    room.take("t", 1, beside=False, alone=True)
    assert room.jobs == {"t": 32}


def test_some_room_is_kept_free_where_several_tenants_come():
    assert a_room().free == 7
    assert a_room(slots=1, slots_each=1).free == 1
    assert a_room(slots=8, slots_each=8).free == 12
    assert a_room(slots=0).free == 0


def test_who_has_nothing_on_a_full_lane_goes_beside_up_to_its_part_and_who_fills_it_does_not():
    room = a_full_room()
    assert room.entry("large", 0.5) is None
    assert room.entry("small", 0.5) == Entry(beside=True, jobs_max=32)
    room.take("small", 20, beside=True)
    assert room.entry("small", 0.5) == Entry(beside=True, jobs_max=12)
    room.take("small", 12, beside=True)
    assert room.entry("small", 0.5) is None


def test_while_a_slot_is_free_for_certain_nobody_goes_beside():
    room = a_room()
    room.take("large", FULL_SHARD, beside=False)
    assert not room.entry("small", 0.5).beside
    room.take("large", FULL_SHARD, beside=False)
    assert room.entry("small", 0.5).beside


def test_nobody_goes_beside_its_own_work():
    room = a_room()
    for _ in range(4):
        room.take("t", 32, beside=False)
    assert not room.entry("t", 1.0).beside


def test_an_engine_with_one_place_takes_one_job_beside():
    room = a_full_room(slots=1, slots_each=1, places=1)
    assert room.entry("small", 0.5) == Entry(beside=True, jobs_max=1)
    room.take("small", 1, beside=True)
    assert room.entry("other", 0.3) is None


@given(
    st.integers(1, 3),
    st.integers(1, 8),
    st.integers(1, 256),
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 600)), max_size=120),
    st.dictionaries(st.sampled_from("abcdef"), st.floats(0.5, 4.0)),
)
def test_beside_the_slots_nobody_gets_more_than_its_part_and_all_together_leave_one(
    instances, slots_each, places_each, arrivals, weights
):
    tenants = {tenant for tenant, _ in arrivals}
    shares = shares_of(tenants, weights)
    room = LaneRoom(
        slots=instances * slots_each, slots_each=slots_each, places=instances * places_each, is_shared=len(tenants) > 1
    )
    beside = dict.fromkeys(tenants, 0)
    for tenant, jobs in arrivals:
        entry = room.entry(tenant, shares[tenant])
        if entry is None:
            assert room.free == 0
            continue
        taken = min(jobs, entry.jobs_max)
        assert taken > 0
        if entry.beside:
            assert len(room.jobs) > 0
            beside[tenant] += taken
        room.take(tenant, taken, beside=entry.beside)
    assert len(room.waiting) <= 2 * room.slots
    for tenant in tenants:
        assert beside[tenant] <= max(1, room.places * shares[tenant])
    if room.jobs_beside:
        assert len(tenants) > 1
        assert room.jobs_beside <= max(1, room.places - room.places * min(shares.values()) + 1)
