"""Rescuers in processes of their own, of which one works: what counts as a gap when another one takes over."""

from __future__ import annotations

from broker.rescuer import Rescuer
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


def test_one_that_comes_after_none_looked_for_long_rests_a_lease(world):
    """Nobody could renew either, if all of the broker was away: what its workers have is theirs."""
    world.take_in(some_lines(1))
    _looks(world, _another(world), 5)
    world.claimed()
    world.clock.advance(4 * LEASE_SECONDS)
    fresh = _another(world)
    assert _looks(world, fresh, LEASE_SECONDS - 2) == 0
    assert _looks(world, fresh, 3) == 1
