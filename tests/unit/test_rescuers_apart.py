"""Rescuers in processes of their own, of which one works: what counts as a gap when another one takes over."""

from __future__ import annotations

from broker.stages.rescuer import Rescuer
from tests.unit.builders import LEASE_SECONDS, some_lines


def _another(world):
    """In the served form, beside a door that answers."""
    parts = {"database": world.database, "lanes": world.lanes, "clock": world.clock, "wakeups": world.wakeups}
    return Rescuer(lease_seconds=LEASE_SECONDS, door_heard_us=lambda _connection: world.clock(), **parts)


def _looks(world, rescuer, seconds):
    """For so long; how many shards it took back."""
    taken = 0
    for _ in range(round(seconds)):
        world.clock.advance(1)
        taken += rescuer.step()
    return taken


def test_one_that_stood_by_for_long_takes_back_at_once_what_is_due(world):
    world.take_in(some_lines(1))
    leader, standby = _another(world), _another(world)
    _looks(world, leader, 60)
    world.claimed()
    assert _looks(world, leader, LEASE_SECONDS - 5) == 0
    assert _looks(world, standby, 6) == 1


def test_one_that_comes_after_none_looked_for_long_rests_until_workers_can_have_renewed(world):
    """Nobody could renew either, if all of the broker was away: what its workers have is theirs."""
    world.take_in(some_lines(1))
    _looks(world, _another(world), 5)
    world.claimed()
    world.clock.advance(4 * LEASE_SECONDS)
    fresh = _another(world)
    assert _looks(world, fresh, 9) == 0
    assert _looks(world, fresh, 3) == 1


class _Door:
    """The role `api` in one process: it says every 2 s that it works, until it is away."""

    def __init__(self, world):
        self.world, self.heard_us, self.is_away = world, world.clock(), False

    def tick(self):
        if not self.is_away and self.world.clock() - self.heard_us >= 2_000_000:
            self.heard_us = self.world.clock()


def _after_an_outage(world, seconds):
    """A rescuer, and what it takes back in each second; the door was away so long, and is back."""
    door = _Door(world)
    parts = {"database": world.database, "lanes": world.lanes, "clock": world.clock, "wakeups": world.wakeups}
    rescuer = Rescuer(lease_seconds=LEASE_SECONDS, door_heard_us=lambda _connection: door.heard_us, **parts)

    def look(seconds):
        taken = []
        for _ in range(seconds):
            world.clock.advance(1)
            door.tick()
            taken.append(rescuer.step())
        return taken

    assert look(5) == [0] * 5
    world.claimed()
    door.is_away = True
    assert look(seconds) == [0] * seconds
    door.is_away = False
    return look


def test_after_the_only_door_was_away_a_dead_workers_shard_waits_no_longer_than_living_ones_take_to_renew(world):
    world.take_in(some_lines(1))
    for seconds, waits in ((3, 13), (8, 10), (40, 10)):
        look = _after_an_outage(world, seconds)
        taken = look(waits + 2)
        assert sum(taken) == 1, seconds
        assert taken.index(1) <= waits, seconds


def test_after_it_was_away_a_worker_that_renews_as_soon_as_it_can_keeps_its_shard(world):
    world.take_in(some_lines(1))
    look = _after_an_outage(world, 40)
    assert look(7) == [0] * 7  # the longest that a question hangs, a second's pause, and one for the answer
    (shard,) = world.all_shards().values()
    assert world.renew(shard, [0]).granted
    assert look(10) == [0] * 10
