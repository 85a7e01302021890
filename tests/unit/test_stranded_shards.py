"""Shards that a worker had fetched when it died: back after its presence is over, not after the time to claim."""

from __future__ import annotations

import pytest

from broker.domain.presence import WorkerPresence
from broker.domain.shard import ShardState
from tests.unit.builders import a_lane, some_lines


@pytest.fixture
def world(make_world):
    """Two workers of one slot each; shards of two jobs, whose claim may take long."""
    made = make_world(a_lane(slots=2, shard_jobs_max=2, shard_seconds=100))
    made.take_in(some_lines(8))
    return made


def _present(world, *workers, leaving=False):
    for worker in workers:
        world.door.report(WorkerPresence(worker, "lane-a", 1, leaving))


def _published(world):
    """New shards as the relay publishes them."""
    return sorted(world.dispatch(), key=lambda shard: shard.shard_id)


def _looks(world, seconds, *living):
    """The rescuer looks on while these workers say that they are there; how many shards it took back."""
    taken = 0
    for second in range(seconds):
        if second % 5 == 0:
            _present(world, *living)
        world.clock.advance(1)
        taken += world.rescuer.step()
    return taken


def _renewing(world, shard, worker, seconds, *living):
    taken = 0
    for _ in range(seconds // 5):
        assert world.renew(shard, [0], worker).granted
        taken += _looks(world, 5, *living)
    return taken


def test_one_that_a_dead_worker_had_fetched_is_taken_back_once_later_ones_were_claimed(world):
    _present(world, "w1", "w2")
    fetched_by_dead, later, *_ = _published(world)
    world.claim(later, "w2")
    assert _renewing(world, later, "w2", 15, "w2") == 0
    assert _renewing(world, later, "w2", 5, "w2") == 1
    assert world.shard(fetched_by_dead).state is ShardState.TAKEN_BACK
    assert not world.claim(fetched_by_dead, "w2").granted  # its message, come again
    assert world.shard(later).state is ShardState.RUNNING
    world.run_all()
    assert world.verified().faults == []


def test_one_that_nothing_has_overtaken_may_still_lie_on_the_bus(world):
    _present(world, "w1", "w2")
    first, *rest = _published(world)
    world.claim(first, "w2")
    assert _renewing(world, first, "w2", 30, "w2") == 0
    assert {world.shard(shard).state for shard in rest} == {ShardState.SENT}


def test_one_that_waits_behind_what_a_living_worker_runs_is_left_to_it(world):
    _present(world, "w1", "w2")
    held_by_w1, later, *_ = _published(world)
    world.claim(later, "w2")
    assert _renewing(world, later, "w2", 40, "w1", "w2") == 0
    assert world.shard(held_by_w1).state is ShardState.SENT


@pytest.mark.parametrize("leaving", [True, False])
def test_a_worker_that_left_handed_back_and_one_that_died_before_never_had_it(world, leaving):
    _present(world, "w1", "w2")
    if leaving:
        _present(world, "w1", leaving=True)
    else:
        _looks(world, 20, "w2")
    sent, later, *_ = _published(world)
    world.claim(later, "w2")
    assert _renewing(world, later, "w2", 40, "w2") == 0
    assert world.shard(sent).state is ShardState.SENT
