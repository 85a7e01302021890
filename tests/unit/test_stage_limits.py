"""What a batch's window and budget say to the worker, and what follows from what it hands back; two of each."""

from __future__ import annotations

import uuid

import pytest

from broker.bus.envelope import open_shard
from broker.bus.inbox import Inbox
from broker.bus.publisher import Publisher
from broker.domain.errors import ErrorCode
from broker.domain.job import Constraints
from broker.domain.outcome import Outcome
from broker.domain.usage import Usage
from broker.ledger.tables import job_outcome
from broker.signing import KeyRing, KeyRole, PublicKey
from broker.stages.relay import Relay
from tests.unit.builders import SECOND_US, a_job_ran, a_lane, a_signer, some_lines

COST = 2_500
"""What one job is expected to cost: a hundredth of a second of a quarter of an instance at 3.60 dollars an hour."""


@pytest.fixture
def orders(make_world):
    """The world of two lanes, and what the relay says to their workers."""
    world = make_world(a_lane("one", slots=4), a_lane("two", slots=4))
    signer, private = a_signer()
    url = f"lanemem://limits-{uuid.uuid4().hex}"
    publisher, inbox = Publisher(url), Inbox(url, [lane.shards_queue for lane in world.lanes], prefetch=100)
    ring = KeyRing({signer.key_id: PublicKey(KeyRole.BROKER, "broker", private.public_key())})
    relay = Relay(world.database, world.lanes, {str(one.name): publisher for one in world.lanes}, signer, world.clock)

    def sent():
        """All that was published since: it may come in several pieces, one of each queue."""
        expected, found = relay.step(), []
        while len(found) < expected:
            came = inbox.receive(100, 10.0)
            assert came, f"{len(found)} of {expected} messages came"
            found += [open_shard(ring, one.envelope, world.clock()).body for one in came]
        return {order.shard_id: order for order in found}

    yield world, sent
    inbox.close()
    publisher.close()


def test_each_job_goes_with_its_own_deadline_and_each_shard_with_its_batches_budget(orders):
    world, sent = orders
    short = world.take_in(some_lines(3, "s"), window_seconds=100, max_cost_nano_usd=1_000 * COST)
    long = world.take_in(some_lines(3, "l"), window_seconds=1_000, constraints=Constraints(lanes=("two",)))
    tight = world.take_in(some_lines(3, "t"), window_seconds=500, max_cost_nano_usd=3 * COST)
    written = world.dispatch()
    told = sent()
    found = {}
    for shard in written:
        order = told[shard.shard_id]
        found[shard.batch_id] = ({job.deadline_us - world.clock() for job in order.jobs}, order.budget_nano_usd)
    assert found == {
        short.batch_id: ({100 * SECOND_US}, 2 * 3 * COST),  # where there is enough, jobs may be dearer than the mean
        long.batch_id: ({1_000 * SECOND_US}, None),
        tight.batch_id: ({500 * SECOND_US}, 3 * COST),
    }


def _ends(world, batch_id):
    ends = [(row.outcome, row.error_code) for row in world.rows(job_outcome) if row.batch_id == batch_id]
    return {end: ends.count(end) for end in set(ends)}


def test_what_a_worker_did_not_begin_in_time_expires_and_another_batch_goes_on(make_world):
    world = make_world(a_lane("one", slots=4))
    late = world.take_in(some_lines(5, "l"), window_seconds=100)
    other = world.take_in(some_lines(5, "o"), window_seconds=1_000)
    shards = {shard.batch_id: shard for shard in world.claimed()}
    world.clock.advance(100)
    mine = shards[late.batch_id]
    world.record(world.ran(mine, a_job_ran(0), a_job_ran(1)), world.returned(mine, ErrorCode.JOB_EXPIRED))
    assert world.dispatch() == []
    assert world.closer.step() == 1
    assert _ends(world, late.batch_id) == {(Outcome.SUCCEEDED, None): 2, (Outcome.EXPIRED, ErrorCode.BATCH_EXPIRED): 3}
    assert _ends(world, other.batch_id) == {}
    world.record(world.ran(shards[other.batch_id], *map(a_job_ran, range(5))))
    assert _ends(world, other.batch_id) == {(Outcome.SUCCEEDED, None): 5}
    assert world.verified().faults == []


def test_what_a_budget_did_not_let_begin_goes_out_again_while_it_lasts_and_then_ends(make_world):
    """Jobs cost fifty times what is believed of them."""
    world = make_world(a_lane("one", slots=4))
    tight = world.take_in(some_lines(100, "t"), max_cost_nano_usd=500 * COST)
    free = world.take_in(some_lines(5, "f"))
    places, spent, sizes = 4, 0, []
    while shards := [shard for shard in world.claimed() if shard.batch_id == tight.batch_id]:
        (mine,) = shards
        begun = min(places if not sizes else 1, mine.jobs_count)  # as a worker does
        assert mine.hold_nano_usd <= 500 * COST - spent
        ran = [a_job_ran(index, usage=Usage(accelerator_us=50 * COST)) for index in range(begun)]
        world.record(world.ran(mine, *ran), world.returned(mine, ErrorCode.BUDGET_EXCEEDED))
        spent += begun * 50 * COST
        sizes.append(mine.jobs_count)
    assert 500 * COST <= spent <= (500 + 50 * places) * COST
    assert sizes == sorted(sizes, reverse=True)
    while world.closer.step():
        pass
    ended = _ends(world, tight.batch_id)
    assert ended[Outcome.FAILED, ErrorCode.BUDGET_EXCEEDED] == 100 - spent // (50 * COST)
    assert world.counts(tight.batch_id).ended == 100
    assert _ends(world, free.batch_id) == {}
    assert world.verified().faults == []
