"""What workers ask at the lease door: held up by no other question, and refused where no table could keep it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from broker.api.errors import Refused
from broker.api.leases import LeaseCounter
from broker.api.server import Door, listen
from broker.api.threads import in_lease_thread, in_summary_thread, in_thread
from broker.bus.envelope import Kind, seal
from broker.database.tables import instance, worker
from broker.domain.errors import BrokerError
from broker.domain.parked import AskToPark
from broker.domain.presence import SLOTS_MAX, WORKER_ID_CHARS_MAX, WorkerPresence
from broker.domain.shard import ClaimShards, RenewLease
from tests.unit.builders import some_lines

SHARD = b"s" * 16
HERE = WorkerPresence("w1", "lane-a", 1)


@pytest.fixture
def counter(world):
    return LeaseCounter(world.door, world.ring, world.clock)


async def _ask(world, counter, question):
    sealed = seal(world.signers["lane-a"], Kind.LEASE, "broker", question, now_us=world.clock(), valid_us=60_000_000)
    sent = []

    async def receive():
        return {"type": "http.request", "body": sealed}

    async def send(message):
        sent.append(message)

    await counter({}, receive, send)
    return sent[0]["status"]


def test_questions_that_take_long_hold_up_no_lease(world, counter):
    world.take_in(some_lines(1))
    (shard,) = world.dispatch()
    go_on = threading.Event()

    async def ask_all():
        others = [asyncio.ensure_future(run(go_on.wait)) for run in [in_thread] * 16 + [in_summary_thread] * 4]
        await asyncio.sleep(0)  # all of them have begun to ask
        try:
            questions = [
                ClaimShards((shard.shard_id,), "lane-a", "w1"),
                RenewLease(shard.shard_id, "lane-a", "w1", b""),
                HERE,
            ]
            return [await asyncio.wait_for(_ask(world, counter, question), 10) for question in questions]
        finally:
            go_on.set()
            await asyncio.gather(*others)

    assert asyncio.run(ask_all()) == [200, 200, 200]
    assert world.shard(shard).worker_id == "w1"


def test_only_so_many_wait_for_a_summary(world, counter, monkeypatch):
    monkeypatch.setattr("broker.api.threads._summaries", threading.BoundedSemaphore(3))
    go_on = threading.Event()

    async def ask_all():
        asked = [asyncio.ensure_future(in_summary_thread(go_on.wait)) for _ in range(5)]
        refused = [one.exception() for one in (await asyncio.wait(asked, return_when="FIRST_EXCEPTION"))[0]]
        go_on.set()
        await asyncio.gather(*asked, return_exceptions=True)
        return refused, await in_summary_thread(lambda: "made")

    refused, made = asyncio.run(ask_all())
    assert [(one.status, one.code) for one in refused] == [(503, "busy")] * len(refused) != []
    assert made == "made"


def test_a_door_at_which_no_lease_gets_through_is_noticed():
    door, go_on = Door(_nobody, listen("127.0.0.1", 0)), threading.Event()
    door.start()
    beats = []
    try:
        door.as_a_worker(lambda: beats.append("open"))
        stuck_leases = _fill_the_lease_pool(door, go_on)
        with pytest.raises(BrokerError, match=r"the lease door has not answered for 0\.1 s"):
            door.as_a_worker(lambda: beats.append("late"), 0.1)
        go_on.set()
        for one in stuck_leases:
            one.result(10)
        door.as_a_worker(lambda: beats.append("open again"))
    finally:
        go_on.set()
        door.stop()
    assert (beats[0], beats[-1]) == ("open", "open again")


WRONG = [
    (WorkerPresence("", "lane-a", 1), "worker_id"),
    (WorkerPresence("w" * (WORKER_ID_CHARS_MAX + 1), "lane-a", 1), "worker_id"),
    (WorkerPresence("w\0", "lane-a", 1), "worker_id"),
    (WorkerPresence("w1", "lane-a", -1), "slots"),
    (WorkerPresence("w1", "lane-a", SLOTS_MAX + 1), "slots"),
    (WorkerPresence("w1", "lane-a", 2**63 - 1), "slots"),
    (WorkerPresence("w1", "lane-a", 1, resource_id="vm\0"), "resource_id"),
    (ClaimShards((SHARD,), "lane-a", "w" * 200), "worker_id"),
    (ClaimShards((SHARD, b"s"), "lane-a", "w1"), "shard_id"),
    (RenewLease(b"s" * 17, "lane-a", "w1", b""), "shard_id"),
    (RenewLease(SHARD, "lane-a", "", b""), "worker_id"),
    (AskToPark(b"", "lane-a", "w1", b"d" * 32, 1), "shard_id"),
]


@pytest.mark.parametrize(
    ("question", "field"), WRONG, ids=[f"{type(q).__name__}-{n}" for n, (q, _) in enumerate(WRONG)]
)
def test_what_no_table_could_keep_is_refused_in_one_sentence(world, counter, question, field):
    with pytest.raises(Refused) as refused:
        asyncio.run(_ask(world, counter, question))
    assert (refused.value.status, refused.value.field) == (400, field)
    assert field in refused.value.message
    assert "\n" not in refused.value.message
    assert world.count(worker) == world.count(instance) == 0
    assert asyncio.run(_ask(world, counter, HERE)) == 200  # and its neighbour is served


@pytest.mark.parametrize("slots", [0, SLOTS_MAX])
def test_the_limits_themselves_are_kept(world, counter, slots):
    assert asyncio.run(_ask(world, counter, WorkerPresence("w" * WORKER_ID_CHARS_MAX, "lane-a", slots))) == 200
    assert [(len(row.worker_id), row.slots) for row in world.rows(instance)] == [(WORKER_ID_CHARS_MAX, slots)]


async def _nobody(scope, receive, send):
    raise AssertionError("nobody asks it over the network")


def _fill_the_lease_pool(door, go_on):
    return [asyncio.run_coroutine_threadsafe(in_lease_thread(go_on.wait), door._loop) for _ in range(16)]
