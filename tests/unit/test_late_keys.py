"""Keys that were made a moment ago: what they signed is kept until it can be known, whatever strangers send."""

from __future__ import annotations

import asyncio
import time
import uuid

import pytest

from broker.api.errors import Refused
from broker.api.leases import LeaseCounter
from broker.bootstrap.recording import _Recording
from broker.bootstrap.stored_keys import StoredKeys
from broker.bus.claim_check import ClaimCheck, SharedPlace
from broker.bus.drivers.memory import MemoryDriver, MemoryOptions, discard_bus
from broker.bus.envelope import Kind, UnknownKeyError, open_event, seal
from broker.bus.inbox import Inbox
from broker.bus.late_keys import LateKeys
from broker.bus.payload_store import PayloadStore
from broker.bus.publisher import Publisher
from broker.database.keys import remember_key
from broker.database.tables import job
from broker.domain.job import Constraints
from broker.domain.presence import WorkerPresence
from broker.ledger.tables import job_outcome
from broker.signing import KeyRing, KeyRole
from broker.stages.recorder import Recorder
from tests.unit.builders import NOW_US, a_job_ran, a_lane, a_signer, some_lines
from tests.unit.producers import TENANT, ProducersWorld, a_request

SECONDS = 20.0


def _remember(database, signer, role, owner) -> None:
    database.write(
        lambda connection: remember_key(
            connection,
            key_id=signer.key_id,
            role=role,
            owner=owner,
            public_key=signer.public_bytes,
            now_us=NOW_US,
        )
    )


class Bench:
    """Two lanes on one bus, of which only the first has a key yet; each has run its shard."""

    def __init__(self, world, folder) -> None:
        self.world, self.name = world, uuid.uuid4().hex
        self.url = f"lanemem://{self.name}"
        self.keys = StoredKeys(world.database)
        self.place = SharedPlace(PayloadStore(f"file://{folder}/payloads"))
        self.check = ClaimCheck.of_broker(self.place, a_signer("broker")[0], self.keys.ring, world.clock)
        self.recorder = Recorder(
            database=world.database,
            lanes=world.lanes,
            ring=self.keys.ring,
            clock=world.clock,
            wakeups=world.wakeups,
            health=world.health,
        )
        queues = [lane.events_queue for lane in world.lanes]
        self.recording = _Recording(
            self.recorder, lambda prefetch: Inbox(self.url, queues, prefetch, claim_check=self.check)
        )
        self.publisher = Publisher(self.url)
        for name in ("old", "new"):
            world.take_in(some_lines(3, name), constraints=Constraints(lanes=(name,)))
        self.shards = {shard.lane: shard for shard in world.claimed()}
        self.register("old")
        self.recording.step()  # there are no events, but the bus knows its queues

    def register(self, lane: str) -> None:
        _remember(self.world.database, self.world.signers[lane], KeyRole.LANE, lane)

    def event(self, lane: str) -> bytes:
        shard = self.shards[lane]
        return self.world.message(self.world.ran(shard, *map(a_job_ran, range(shard.jobs_count)))).envelope

    def publish(self, lane: str, *envelopes: bytes) -> None:
        self.publisher.publish_events(f"lane.{lane}.events", list(envelopes))

    def stranger(self, key_id: str = "") -> bytes:
        signer, _ = a_signer(key_id or uuid.uuid4().hex)
        ran = self.world.ran(self.shards["old"], a_job_ran(0))
        return seal(signer, Kind.EVENT, "broker", ran, now_us=NOW_US, valid_us=10**12)

    def until_ended(self, count: int) -> None:
        deadline = time.monotonic() + SECONDS
        while self.world.count(job_outcome) < count:
            assert time.monotonic() < deadline, f"{self.world.count(job_outcome)} of {count} ended"
            self.recording.step()

    def until_dead(self, lane: str, count: int) -> None:
        deadline = time.monotonic() + SECONDS
        while len(self.dead(lane)) < count:
            assert time.monotonic() < deadline, f"{len(self.dead(lane))} of {count} are dead letters"
            self.recording.step()

    def dead(self, lane: str) -> list[bytes]:
        return [one.data for one in MemoryDriver(self.name, MemoryOptions()).dead_letters(f"lane.{lane}.events")]

    def waiting(self) -> int:
        driver = MemoryDriver(self.name, MemoryOptions())
        return sum(driver.size(lane.events_queue) or 0 for lane in self.world.lanes)

    def close(self) -> None:
        self.recording._let_go()
        self.publisher.close()
        discard_bus(self.name)


@pytest.fixture
def bench(make_world, tmp_path):
    made = Bench(make_world(a_lane("old"), a_lane("new")), tmp_path)
    yield made
    made.close()


def test_a_new_lanes_results_are_kept_while_strangers_use_up_the_looks(bench):
    bench.publish("old", bench.stranger())
    bench.recording.step()  # which is the look of this half second
    bench.register("new")
    bench.publish("new", bench.event("new"))
    bench.publish("old", *(bench.stranger() for _ in range(5)), bench.event("old"))
    bench.until_ended(6)
    assert bench.world.rows(job_outcome)[0].outcome == "succeeded"
    bench.until_dead("old", 6)
    assert bench.dead("new") == []
    assert bench.world.verified().faults == []


def test_a_stranger_who_sends_without_end_takes_no_place_from_a_new_lane(bench):
    bench.publish("old", *(bench.stranger("loud") for _ in range(200)))
    bench.until_dead("old", 200)
    bench.register("new")
    bench.publish("old", *(bench.stranger("loud") for _ in range(200)))
    bench.publish("new", bench.event("new"))
    bench.until_ended(3)
    assert bench.dead("new") == []


def test_what_a_new_lane_parked_is_kept_as_well(bench):
    signer = bench.world.signers["new"]
    ring = KeyRing({})
    parked = ClaimCheck.of_worker(bench.place, {"new": signer}, ring, bench.world.clock).park(bench.event("new"))
    bench.publish("old", bench.stranger())
    bench.recording.step()
    bench.register("new")
    bench.publish("new", parked)
    bench.until_ended(3)
    assert bench.dead("new") == []


def test_an_event_that_is_nobodys_becomes_a_dead_letter_and_the_rest_is_recorded(bench):
    world = bench.world
    bench.register("new")
    foreign = world.message(world.ran(bench.shards["new"], a_job_ran(0)), signed_by="old").envelope
    other_worker = world.message(
        world.ran(bench.shards["old"], a_job_ran(0)).__class__(bench.shards["old"].shard_id, "old", "w2", 0, ())
    ).envelope
    bench.publish("old", foreign, b"no envelope", other_worker, bench.event("old"))
    bench.publish("new", bench.event("new"))
    bench.until_ended(6)
    bench.until_dead("old", 3)
    assert bench.waiting() == 0
    assert bench.dead("new") == []


def test_an_event_that_can_never_be_recorded_becomes_a_dead_letter(bench, monkeypatch):
    bench.register("new")
    apply = Recorder._apply

    def failing(self, ends, record, event, now_us):
        if record.lane == "old":
            raise KeyError("this one")
        return apply(self, ends, record, event, now_us)

    monkeypatch.setattr(Recorder, "_apply", failing)
    bench.publish("old", bench.event("old"))
    bench.publish("new", bench.event("new"))
    bench.until_ended(3)
    bench.until_dead("old", 1)


def test_a_new_producers_jobs_are_kept_while_strangers_use_up_the_looks(world):
    bus = ProducersWorld(world)
    try:
        bus.ring = StoredKeys(world.database).ring
        bus.receiving = bus.receiver(bus.inbox)
        bus.put(bus.sealed([a_request("stranger")], signer=bus.stranger))
        bus.receive(1)
        _remember(world.database, bus.producer, KeyRole.PRODUCER, TENANT)
        bus.put(bus.sealed([a_request("mine")]), bus.sealed([a_request("stranger")], signer=bus.stranger))
        bus.receive(2)
        assert (world.count(job), bus.dead()) == (1, 2)
    finally:
        bus.close()


def test_a_worker_whose_key_is_new_is_told_to_ask_again(world):
    keys = StoredKeys(world.database)
    counter = LeaseCounter(world.door, keys.ring, world.clock)

    def ask(signer) -> int:
        here = WorkerPresence("w1", "lane-a", 1)
        sealed = seal(signer, Kind.LEASE, "broker", here, now_us=world.clock(), valid_us=60_000_000)
        sent = []

        async def receive():
            return {"type": "http.request", "body": sealed}

        async def send(message):
            sent.append(message)

        try:
            asyncio.run(counter({}, receive, send))
        except Refused as refused:
            return int(refused.status)
        return int(sent[0]["status"])

    assert ask(a_signer("stranger")[0]) == 401
    _remember(world.database, world.signers["lane-a"], KeyRole.LANE, "lane-a")
    answers = [ask(world.signers["lane-a"])]
    deadline = time.monotonic() + SECONDS
    while answers[-1] != 200 and time.monotonic() < deadline:
        answers.append(ask(world.signers["lane-a"]))
    assert set(answers) == {503, 200}


def test_so_many_may_be_put_off_and_no_more(monkeypatch):
    now = 100.0
    monkeypatch.setattr("broker.bus.late_keys.time.monotonic", lambda: now)
    late = LateKeys(KeyRing({}, is_settled=lambda _key_id, _since: False))
    deliveries = [object() for _ in range(40)]
    assert sum(late.may_come(one, "k", now) for one in deliveries) == 32
    assert sum(late.may_come(one, "k", now) for one in deliveries) == 32  # the same
    now += 3  # they were of an inbox that was given up
    assert late.may_come(object(), "k", now)


def test_an_unknown_key_is_an_error_that_names_it():
    signer, _ = a_signer("nobody's")
    sealed = seal(signer, Kind.EVENT, "broker", WorkerPresence("w", "l", 1), now_us=NOW_US, valid_us=1)  # type: ignore[arg-type] # (it is not looked at)
    with pytest.raises(UnknownKeyError, match="nobody's") as raised:
        open_event(KeyRing({}), sealed, NOW_US)
    assert raised.value.key_id == "nobody's"
