"""Replies over the bus: every end is told, at least once, to whoever asked, and nothing is kept after that."""

from __future__ import annotations

import time

import pytest

from broker.bus.driver import BusUnavailable, MessageRefused, PublishError
from broker.database import tables
from broker.domain.bus_jobs import JobReply
from broker.domain.errors import BrokerError, ErrorCode
from broker.domain.ids import new_id
from broker.ledger import replies_due
from broker.stages import notifier as notifier_module
from broker.stages.notifier import Notifier
from tests.unit.builders import DAY_SECONDS, a_failure, a_job_ran
from tests.unit.producers import QUEUE, ProducersWorld, a_request


@pytest.fixture
def bus(world):
    made = ProducersWorld(world)
    made.notifier.step()
    yield made
    made.close()


def _submitted(bus, *requests, reply_to=QUEUE):
    keys = bus.jobs.publish(requests, reply_to=reply_to)
    bus.receive(1)
    return keys


def _another(bus, publisher=None, **parts):
    world = bus.world
    parts |= {"database": world.database, "clock": world.clock, "wakeups": world.wakeups}
    return Notifier(publisher=publisher or bus.publisher, signer=bus.broker, **parts)


def test_ends_of_all_kinds_are_told_with_what_they_brought(bus):
    keys = _submitted(bus, a_request(), a_request(), a_request(window="15m"), a_request(window="bad"))
    shards = bus.world.claimed()
    (two,) = [shard for shard in shards if shard.jobs_count == 2]
    code = ErrorCode.ENGINE_REFUSED
    bus.world.record(bus.world.ran(two, a_job_ran(0), a_failure(1, code, status_code=422)))
    bus.notify_all()
    told = {one.key: one for one in bus.told(3)}
    jobs = {row.idempotency_key: row.job_id for row in bus.world.rows(tables.idempotency)}
    assert told[keys[0]] == JobReply(keys[0], jobs[keys[0]], "succeeded", None, "", 200, 7, b'{"n":0}')
    assert told[keys[1]] == JobReply(keys[1], jobs[keys[1]], "failed", code, "it broke (lane lane-a)", 422)
    refused = told[keys[3]]
    assert (refused.job_id, refused.status, refused.error_code) == (None, "refused", "invalid_field")
    assert refused.message.startswith("window is ")
    assert len(told) == 3
    assert [row.idempotency_key for row in bus.world.rows(tables.reply)] == [keys[2]]


def test_a_job_that_ends_while_it_waits_is_told_too(bus):
    _submitted(bus, a_request(window="1s"))
    bus.world.clock.advance(DAY_SECONDS)
    bus.world.closer.step()
    bus.notify_all()
    (told,) = bus.told(1)
    assert (told.status, told.error_code, told.body) == ("expired", "job_expired", b"")


def test_only_who_asked_is_told(bus):
    _submitted(bus, a_request(), reply_to="")
    _submitted(bus, a_request(window="bad"), reply_to="")
    _submitted(bus, a_request(), reply_to="replies.other")
    bus.world.run_all()
    bus.notify_all()
    assert bus.told(0) == []
    assert (bus.waiting("replies.other"), bus.world.count(tables.reply)) == (1, 0)


def test_a_job_sent_again_under_its_key_is_told_again(bus):
    for _ in range(2):
        _submitted(bus, a_request(idempotency_key="k"))
        bus.world.run_all()
        bus.notifier._goes_through = True
        bus.notify_all()
        (told,) = bus.told(1)
        assert (told.key, told.status) == ("k", "succeeded")
    assert bus.world.count(tables.job) == 1


def test_what_was_missed_is_found_by_going_through(bus, monkeypatch):
    monkeypatch.setattr(notifier_module, "_ROWS_PER_PAGE", 3)
    _submitted(bus, *[a_request(str(number), window="15m") for number in range(7)])
    _submitted(bus, *[a_request(str(number)) for number in range(7)])
    (shard,) = [one for one in bus.world.claimed() if one.jobs_count == 7][:1]
    bus.notifier._heard.clear()
    bus.world.record(bus.world.ran(shard, *map(a_job_ran, range(7))))
    fresh = _another(bus)  # as after a restart: it has heard nothing
    steps = 1
    while fresh.step():
        steps += 1
    assert steps >= 5
    assert len(bus.told(7)) == 7
    assert bus.world.count(tables.reply) == 7


def test_one_that_stood_by_looks_at_all_again(bus, monkeypatch):
    bus.notifier.step()
    assert not bus.notifier._goes_through
    monkeypatch.setattr(bus.notifier, "_stepped_at", time.monotonic() - 60)
    _submitted(bus, a_request())
    bus.world.run_all()
    bus.notifier._heard.clear()
    bus.notify_all()
    assert len(bus.told(1)) == 1


def test_more_endings_than_it_keeps_make_it_go_through(bus, monkeypatch):
    monkeypatch.setattr(notifier_module, "_ENDINGS_KEPT_MAX", 2)
    bus.notifier._hear([b"a" * 16, b"b" * 16, b"c" * 16])
    assert bus.notifier._goes_through
    bus.notify_all()
    bus.world.wakeups.endings.tell_all()  # after wake-ups from elsewhere were interrupted
    assert bus.notifier._goes_through


class Unreliable:
    """Fails for one queue, in this way."""

    def __init__(self, real, error):
        self.real, self.error, self.calls = real, error, 0

    def publish_events(self, queue, envelopes):
        self.calls += queue == QUEUE
        if queue != QUEUE or self.error is None:
            self.real.publish_events(queue, envelopes)
            return
        if isinstance(self.error, PublishError):
            self.real.publish_events(queue, [one for place, one in enumerate(envelopes) if place])
        raise self.error


@pytest.mark.parametrize("error", [BusUnavailable("away"), PublishError({0: MessageRefused("full")})], ids=str)
def test_a_queue_that_fails_is_left_alone_and_loses_nothing(bus, error, monkeypatch):
    publisher = Unreliable(bus.publisher, error)
    shaky = _another(bus, publisher)
    _submitted(bus, a_request(), a_request())
    _submitted(bus, a_request(), reply_to="replies.other")
    bus.world.run_all()
    while shaky.step():
        pass
    assert (publisher.calls, bus.waiting("replies.other")) == (1, 1)
    told = 1 if isinstance(error, PublishError) else 0
    assert len(bus.told(told)) == told
    assert bus.world.count(tables.reply) == 2 - told
    publisher.error = None
    monkeypatch.setattr(shaky, "_rests_until", {})
    monkeypatch.setattr(shaky, "_goes_through", True)
    while shaky.step():
        pass
    assert (len(bus.told(2 - told)), bus.world.count(tables.reply)) == (2 - told, 0)


def test_a_crash_before_the_rows_are_forgotten_tells_twice(bus, monkeypatch):
    _submitted(bus, a_request())
    bus.world.run_all()
    dying = _another(bus)

    def die(*_arguments, **_terms):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(bus.world.database, "write", die)
        with pytest.raises(KeyboardInterrupt):
            dying.step()
    bus.notifier._goes_through = True
    bus.notify_all()
    first, second = bus.told(2)
    assert (first, bus.world.count(tables.reply)) == (second, 0)


def test_a_body_too_large_for_a_message_is_named_by_its_size(bus, monkeypatch):
    monkeypatch.setattr(replies_due, "REPLY_BODY_BYTES_MAX", 6)
    _submitted(bus, a_request())
    bus.world.run_all()
    bus.notify_all()
    (told,) = bus.told(1)
    assert (told.status, told.body_bytes, told.body) == ("succeeded", 7, b"")


def test_a_body_that_the_bus_can_not_carry_is_named_by_its_size(bus):
    _submitted(bus, a_request())
    bus.world.run_all()
    narrow = _another(bus, message_bytes_max=1)
    while narrow.step():
        pass
    (told,) = bus.told(1)
    assert (told.status, told.body_bytes, told.body) == ("succeeded", 7, b"")


def test_forged_replies_reach_nobody(bus):
    bus.publisher.publish_events(QUEUE, [b"noise", bus.sealed([a_request()])])
    assert bus.told(0) == []
    bus.replies.receive(0.3)
    assert bus.waiting(QUEUE) == 0


def _waited_for(bus) -> int:
    return bus.world.count(tables.reply)


def test_what_was_heard_before_a_read_that_failed_is_told_by_the_next(bus, monkeypatch):
    _submitted(bus, a_request(), a_request(window="15m"))
    bus.world.run_all()
    read, failures = bus.world.database.read, [BrokerError("away")]

    def failing(work):
        if failures:
            raise failures.pop()
        return read(work)

    with monkeypatch.context() as patched:
        patched.setattr(bus.world.database, "read", failing)
        with pytest.raises(BrokerError, match="away"):
            bus.notifier.step()
    bus.notifier._hear([new_id()])  # so that it goes by what it heard alone
    bus.notifier.step()
    assert len(bus.told(2)) == 2
    assert _waited_for(bus) == 0


def test_a_queue_that_rested_is_found_again_under_steady_load(bus, monkeypatch):
    monkeypatch.setattr(notifier_module, "_REST_SECONDS", 0.05)
    monkeypatch.setattr(notifier_module, "_ROWS_PER_PAGE", 2)
    publisher = Unreliable(bus.publisher, BusUnavailable("away"))
    shaky = _another(bus, publisher)
    while shaky.step():
        pass
    _submitted(bus, *[a_request(str(number)) for number in range(5)])
    _submitted(bus, a_request(), reply_to="replies.other")
    bus.world.run_all()
    shaky.step()
    assert (publisher.calls > 0, _waited_for(bus)) == (True, 5)
    publisher.error = None
    deadline = time.monotonic() + 10
    while _waited_for(bus):
        assert time.monotonic() < deadline
        shaky._hear([new_id()])  # others' jobs end all the time
        shaky.step()
    assert len(bus.told(5)) == 5


def test_going_through_begins_at_the_start_though_it_was_amid(bus, monkeypatch):
    monkeypatch.setattr(notifier_module, "_ROWS_PER_PAGE", 2)
    _submitted(bus, *[a_request(str(number)) for number in range(3)])
    _submitted(bus, *[a_request(str(number), window="15m") for number in range(3)])
    bus.notifier.step()
    bus.notifier.step()
    assert bus.notifier._after > bytes(16)
    bus.world.run_all()
    bus.notifier._heard.clear()
    bus.world.wakeups.endings.tell_all()
    for _ in range(8):
        bus.notifier._hear([new_id()])
        bus.notifier.step()
    assert _waited_for(bus) == 0
    assert not bus.notifier._goes_through
