"""The recorder's loop on a real database and the in-memory bus: what it can't take now, and what it never can."""

from __future__ import annotations

import time

import pytest

from broker.bootstrap import loop as loop_module
from broker.bootstrap.loop import Runner
from broker.bootstrap.recording import recorder_loop
from broker.bootstrap.threads import Threads
from broker.bus.inbox import Inbox
from broker.bus.publisher import Publisher
from broker.database.tables import shard as shard_table
from broker.domain.errors import BrokerError
from broker.ledger.tables import job_outcome
from broker.stages.recorder import Recorder
from tests.unit.builders import ONE_PLACE, World, a_job_ran, a_lane, some_lines

JOBS = 6


class Sick(Inbox):
    """An inbox of which `receive` or `acknowledge` raises what no bus raises, so many times in all."""

    raises: dict[str, int]
    opened = 0

    def receive(self, limit, wait_seconds):
        self._trip("receive")
        return super().receive(limit, wait_seconds)

    def acknowledge(self, deliveries):
        self._trip("acknowledge")
        super().acknowledge(deliveries)

    def _trip(self, name):
        if self.raises.get(name, 0) > 0:
            self.raises[name] -= 1
            raise RuntimeError(f"{name}: out of nothing")


class Bench:
    """Two buses with a lane each, the first of which gets the sick inbox."""

    def __init__(self, world: World, name: str, monkeypatch) -> None:
        monkeypatch.setattr(loop_module, "POLL_SECONDS", 0.02)
        self.world = world
        self.urls = [f"lanemem://{name}-{number}" for number in range(2)]
        self.threads = Threads(world.wakeups, full_disk_sentence="full", end_seconds=60.0, end_process=lambda: None)
        self.publishers = [Publisher(url) for url in self.urls]
        self.kinds: list[type[Inbox]] = [type("Mine", (Sick,), {"raises": {}}), Inbox]

    def recorder(self, number: int) -> Recorder:
        world = self.world
        return Recorder(
            database=world.database,
            lanes=world.lanes,
            ring=world.ring,
            clock=world.clock,
            wakeups=world.wakeups,
            health=world.health,
        )

    def start(self) -> None:
        for number, (url, kind) in enumerate(zip(self.urls, self.kinds, strict=True)):
            queue = self.world.lanes[number].events_queue
            self.threads.start(
                recorder_loop(
                    self.recorder(number), lambda prefetch, a=(kind, url, queue): a[0](a[1], [a[2]], prefetch)
                )
            )

    def publish(self, number: int, *events) -> None:
        lane = self.world.lanes[number]
        self.publishers[number].publish_events(
            lane.events_queue, [self.world.message(event).envelope for event in events]
        )

    def until_ended(self, count: int) -> None:
        deadline = time.monotonic() + 20
        while self.world.count(job_outcome) < count:
            assert time.monotonic() < deadline, f"{self.world.count(job_outcome)} of {count} ended"
            time.sleep(0.01)

    def close(self) -> None:
        self.threads.stop()
        self.threads.end()
        self.threads.join(10.0)
        for publisher in self.publishers:
            publisher.close()


@pytest.fixture
def bench(make_world, request, monkeypatch):
    world = make_world(*(a_lane(name, shard_jobs_max=3, slots=2, engine=ONE_PLACE) for name in ("one", "two")))
    made = Bench(world, request.node.name.replace("[", "-").replace("]", ""), monkeypatch)
    yield made
    made.close()


def claimed(bench):
    """Shards on both lanes, and an event that ends all of each."""
    world = bench.world
    world.take_in(some_lines(4 * JOBS))
    shards = world.claimed()
    by_lane = {lane.name: [one for one in shards if one.lane == lane.name] for lane in world.lanes}
    assert all(by_lane.values()), "both lanes have work"
    return [
        [world.ran(one, *map(a_job_ran, range(one.jobs_count))) for one in by_lane[lane.name]] for lane in world.lanes
    ]


@pytest.mark.parametrize("method", ["receive", "acknowledge"])
def test_an_inbox_that_raises_is_opened_anew_and_the_other_goes_on(bench, method):
    first, second = claimed(bench)
    bench.kinds[0].raises = {method: 3}
    bench.start()
    bench.publish(0, *first)
    bench.publish(1, *second)
    bench.until_ended(sum(len(event.jobs) for event in first + second))
    deadline = time.monotonic() + 10
    while bench.kinds[0].raises[method]:  # what was recorded and not acknowledged comes again
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert bench.threads.death is None


def test_the_last_events_are_recorded_after_the_stop(bench):
    first, second = claimed(bench)
    bench.publish(0, *first)
    bench.publish(1, *second)
    bench.start()
    bench.close()
    assert bench.world.count(job_outcome) == sum(len(event.jobs) for event in first + second)


def test_an_event_that_can_never_be_recorded_is_left_out_and_the_others_are_not(bench, monkeypatch):
    first, second = claimed(bench)
    bad = first[0].shard_id
    record = Recorder._apply

    def apply(self, ends, shard, event, now_us):
        if shard.shard_id == bad:
            raise KeyError("this one")
        record(self, ends, shard, event, now_us)

    monkeypatch.setattr(Recorder, "_apply", apply)
    bench.start()
    bench.publish(0, *first)
    bench.publish(1, *second)
    bench.until_ended(sum(len(event.jobs) for event in first[1:] + second))
    assert {row.shard_id for row in bench.world.rows(shard_table) if row.closed_us is None} == {bad}


def test_what_the_database_refuses_for_a_while_is_kept_in_hand(bench, monkeypatch):
    first, second = claimed(bench)
    refusals = [BrokerError("the database is away")] * 4
    write = Recorder._write

    def refusing(self, connection, events, stream):
        if refusals:
            raise refusals.pop()
        return write(self, connection, events, stream)

    monkeypatch.setattr(Recorder, "_write", refusing)
    bench.start()
    bench.publish(0, *first)
    bench.publish(1, *second)
    bench.until_ended(sum(len(event.jobs) for event in first + second))
    assert refusals == []


def test_an_inbox_that_ends_its_thread_is_a_death(bench):
    class Fatal(Inbox):
        def receive(self, limit, wait_seconds):
            raise SystemExit(1)

    loop = recorder_loop(bench.recorder(0), lambda prefetch: Fatal(bench.urls[0], ["lane.one.events"], prefetch))
    with pytest.raises(SystemExit):
        Runner(loop, bench.threads.stopping, bench.world.wakeups, lambda _error: None).run()
