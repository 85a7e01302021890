"""Jobs over the bus: stored once however often they come, refused one by one, and never acknowledged too early."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from hashlib import sha256

import pytest
from sqlalchemy.exc import OperationalError

from broker.bus.driver import MessageTooLarge
from broker.bus.envelope import EnvelopeError, Kind, open_jobs, open_reply, seal
from broker.bus.inbox import Inbox
from broker.database import plans, tables
from broker.domain.bus_jobs import JOBS_PER_MESSAGE_MAX, JOBS_QUEUE, JobReply, derived_key
from broker.domain.errors import BrokerError, ErrorCode
from broker.intake.single_jobs import DoorFull
from broker.ledger.prices import BookEntry, import_book
from broker.rules.placement.learning import Speed
from broker.sdk.jobs_bus import JobsPublisher
from tests.unit.builders import DAY_SECONDS, MODEL, NOW_US, SECOND_US, a_price, an_identity
from tests.unit.producers import OTHER_TENANT, QUEUE, TENANT, ProducersWorld, a_request


@pytest.fixture
def bus(world):
    made = ProducersWorld(world)
    yield made
    made.close()


def _asked(bus):
    return sorted(bus.world.rows(tables.reply), key=lambda row: row.place)


def test_jobs_of_several_messages_are_stored_together_and_acknowledged(bus):
    bus.jobs.publish([a_request("one"), a_request("two")])
    bus.jobs.publish([a_request("three")])
    bus.receive(2)
    assert (bus.world.count(tables.job), bus.world.waiting_jobs()) == (3, 3)
    assert {row.tenant_id for row in bus.world.rows(tables.job)} == {"default"}
    assert (bus.waiting(), bus.dead(), bus.world.count(tables.reply)) == (0, 0, 0)


def test_a_message_that_comes_again_stores_nothing_twice(bus):
    again = bus.sealed([a_request(), a_request(), a_request(idempotency_key="mine")], reply_to=QUEUE)
    bus.put(again, again)
    bus.receive(2)
    bus.put(again)
    bus.receive(1)
    assert bus.world.count(tables.job) == 3
    digest = sha256(again).digest()
    keys = [derived_key(digest, 0), derived_key(digest, 1), "mine"]
    assert [row.idempotency_key for row in _asked(bus)] == keys
    assert len({row.job_id for row in _asked(bus)}) == 3


def test_publishing_tells_the_keys_that_jobs_are_stored_under(bus):
    keys = bus.jobs.publish([a_request(), a_request(idempotency_key="mine"), a_request()], reply_to=QUEUE)
    bus.receive(1)
    assert sorted(keys) == sorted(row.idempotency_key for row in bus.world.rows(tables.idempotency))
    assert keys == [row.idempotency_key for row in _asked(bus)]


def test_two_messages_alike_are_two_messages(bus):
    bus.jobs.publish([a_request()])
    bus.jobs.publish([a_request()])
    bus.receive(2)
    assert bus.world.count(tables.job) == 2


def test_what_its_bus_can_not_carry_is_refused_before_it_is_sent(bus):
    jobs = JobsPublisher(f"{bus.url}&max_message_bytes=10000", bus.producer, clock=bus.world.clock)
    with pytest.raises(MessageTooLarge) as caught:
        jobs.publish([a_request("x" * 3_000), a_request("y" * 3_000)])
    assert "the message of 2 jobs has 6," in str(caught.value)
    assert "on this bus, lanemem://, it may have 6,000: publish fewer jobs at once" in str(caught.value)
    for count in (0, JOBS_PER_MESSAGE_MAX + 1):
        with pytest.raises(ValueError, match=f"jobs has {count:,} jobs; one message has 1 to 1,000"):
            jobs.publish([a_request()] * count)
    jobs.publish([a_request()])
    jobs.close()
    assert bus.waiting() == 1


@pytest.mark.parametrize(
    ("bad", "code", "said"),
    [
        (a_request(window="never"), ErrorCode.INVALID_FIELD, "window is "),
        ({"body": {"model": "nobody's", "messages": [{}]}}, ErrorCode.UNKNOWN_MODEL, "nobody's"),
        (a_request(constraints={"regions": ["moon"]}), ErrorCode.NO_LANE_ALLOWED, "constraints"),
        (a_request(surprise=1), ErrorCode.INVALID_FIELD, "[1]: the job is not as it should be"),
        (7, ErrorCode.INVALID_FIELD, "[1]: the job is not as it should be"),
        (a_request(idempotency_key="k" * 256), ErrorCode.INVALID_FIELD, "idempotency_key has 256 characters"),
    ],
    ids=["window", "model", "constraints", "field", "number", "key"],
)
def test_each_job_is_refused_for_itself(bus, bad, code, said):
    bus.put(bus.sealed([a_request("good"), bad, a_request("good too")], reply_to=QUEUE))
    bus.receive(1)
    assert bus.world.count(tables.job) == 2
    first, refused, last = _asked(bus)
    assert (refused.job_id, refused.error_code, first.error_code, last.message) == (None, code, None, None)
    assert said in refused.message
    assert first.job_id
    assert last.job_id


def test_what_the_planner_and_the_prices_say_holds_on_the_bus_too(bus):
    """Until the outlook has looked, it knows the catalog alone; then a budget and a window that nothing can keep."""
    lane = bus.world.lanes[0]
    slow = Speed(job_s=0.5, used_s=0.5, usual_s=0.5, believed_s=0.5)  # of one of 64 at once: 32 s
    word = plans.LanePlan(lane=str(lane.name), desired=1, usable=1, ready=1, speeds={MODEL: slow})
    bus.world.database.write(lambda connection: plans.write_lane_plans(connection, [word], 1, NOW_US))
    dear = BookEntry(str(lane.name), a_price(36_000_000_000_000, version="2026-06-01.dear"))
    bus.world.database.write(lambda connection: import_book(connection, "b", "b.csv", [dear], NOW_US))
    bus.world.clock.advance(10)
    bus.outlook.lanes()
    deadline = time.monotonic() + 10
    while not bus.outlook.prospects():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    late, costly = a_request(window="5s"), a_request(budget_usd="0.001", window="10m")
    bus.put(bus.sealed([late, costly, a_request(window="10m")], reply_to=QUEUE))
    bus.receive(1)
    first, second, third = _asked(bus)
    assert (first.error_code, second.error_code) == (ErrorCode.DEADLINE_IMPOSSIBLE, ErrorCode.BUDGET_EXCEEDED)
    assert first.message.startswith("window leaves 5 s; the fastest lane allowed needs ")
    assert "the nearest window that would do is " in first.message
    assert third.job_id


@pytest.mark.parametrize("jobs", [b"{}", b"[", b"[]", b'["\xff"]', json.dumps([1] * 1_001).encode()])
def test_what_is_no_list_of_jobs_is_refused_whole(bus, jobs):
    bus.put(bus.sealed(jobs, reply_to=QUEUE))
    bus.receive(1)
    (refused,) = _asked(bus)
    assert refused.message.startswith("jobs is not a list of jobs in JSON and UTF-8: ")
    assert (bus.world.count(tables.job), bus.dead()) == (0, 0)


def test_a_key_that_stands_for_another_job_refuses_that_job_alone(bus):
    bus.jobs.publish([a_request("one", idempotency_key="k")])
    bus.receive(1)
    others = [a_request("two", idempotency_key="k"), a_request("three"), a_request("four", idempotency_key="k")]
    bus.jobs.publish(others, reply_to=QUEUE)
    bus.receive(1)
    assert bus.world.count(tables.job) == 2
    told = [row.message for row in _asked(bus)]
    assert told[0] == told[2] == "idempotency_key: this idempotency key stands for another job already"
    assert told[1] is None


def test_a_job_that_was_taken_in_stays_so_when_its_message_comes_again_too_late(bus):
    deadline = "2027-01-15T08:00:10Z"  # ten seconds from NOW_US
    again = bus.sealed([a_request(deadline=deadline)], reply_to=QUEUE)
    bus.put(again)
    bus.receive(1)
    bus.world.clock.advance(20)
    bus.put(again)
    bus.receive(1)
    (asked,) = _asked(bus)
    assert (asked.error_code, bus.world.count(tables.job)) == (None, 1)
    bus.put(bus.sealed([a_request(deadline=deadline)], reply_to="replies.late"))
    bus.receive(1)
    assert next(row.message for row in _asked(bus) if row.reply_to == "replies.late").startswith("deadline is ")


def _with_another_last_byte(sealed):
    return sealed[:-1] + bytes([sealed[-1] ^ 1])


def _foreign(bus):
    reply = JobReply("k", None, "refused")
    good = [a_request()]
    return {
        "noise": b"noise",
        "stranger": bus.sealed(good, signer=bus.stranger),
        "a broker's key": bus.sealed(good, signer=bus.broker),
        "another kind": seal(bus.broker, Kind.REPLY, "broker", reply, now_us=NOW_US, valid_us=SECOND_US),
        "no jobs inside": seal(bus.producer, Kind.JOBS, "broker", reply, now_us=NOW_US, valid_us=SECOND_US),
        "for somebody else": bus.sealed(good, audience="lane-a"),
        "expired": bus.sealed(good, valid_seconds=-1),
        "changed": _with_another_last_byte(bus.sealed(good)),
        "a queue of others": bus.sealed(good, reply_to="lane.lane-a.shards"),
        "a strange queue": bus.sealed(good, reply_to="replies.a b"),
        "no queue": bus.sealed(good, reply_to="replies."),
        "a long queue": bus.sealed(good, reply_to="replies." + "q" * 101),
    }


def test_what_is_not_ours_goes_to_the_dead_letters_and_holds_up_nothing(bus):
    foreign = _foreign(bus)
    bus.put(*foreign.values(), bus.sealed([a_request()]))
    bus.receive(len(foreign) + 1)
    assert (bus.dead(), bus.world.count(tables.job)) == (len(foreign), 1)


def test_kinds_and_roles_are_not_mixed_up(bus):
    reply = seal(bus.broker, Kind.REPLY, "default", JobReply("k", b"j" * 16, "failed"), now_us=NOW_US, valid_us=1)
    assert open_reply(bus.ring, reply, NOW_US).body == JobReply("k", b"j" * 16, "failed")
    assert open_jobs(bus.ring, bus.sealed([a_request()]), NOW_US).owner == "default"
    forged = seal(bus.producer, Kind.REPLY, "default", JobReply("k", None, "failed"), now_us=NOW_US, valid_us=1)
    with pytest.raises(EnvelopeError, match="by a producer key"):
        open_reply(bus.ring, forged, NOW_US)


def test_a_jobs_tenant_is_its_keys_owner(bus):
    """Of several tenants at once, each with the others' idempotency key; and again when their messages come again."""
    said = [
        bus.sealed([a_request(name, idempotency_key="k"), a_request(name)], signer=signer, reply_to=QUEUE)
        for name, signer in (("ours", bus.producer), ("theirs", bus.other), ("theirs", bus.other))
    ]
    bus.put(*said)
    bus.receive(3)
    bus.put(*said)
    bus.receive(3)
    names = [row.tenant_id for row in bus.world.rows(tables.job)]
    assert sorted(names) == [OTHER_TENANT] * 3 + [TENANT] * 2
    tenant_of = {row.job_id: row.tenant_id for row in bus.world.rows(tables.job)}
    assert all(row.tenant_id == tenant_of[row.job_id] for row in bus.world.rows(tables.reply))
    of_key = {row.tenant_id: row.job_id for row in bus.world.rows(tables.idempotency) if row.idempotency_key == "k"}
    assert {tenant: tenant_of[job_id] for tenant, job_id in of_key.items()} == {
        TENANT: TENANT,
        OTHER_TENANT: OTHER_TENANT,
    }
    assert bus.dead() == 0


def test_one_tenants_key_refuses_nothing_of_another(bus):
    bus.put(bus.sealed([a_request("one", idempotency_key="k")]))
    bus.receive(1)
    bus.put(bus.sealed([a_request("two", idempotency_key="k")], signer=bus.other, reply_to=QUEUE))
    bus.put(bus.sealed([a_request("two", idempotency_key="k")], reply_to=QUEUE))
    bus.receive(2)
    told = {row.tenant_id: row.message for row in _asked(bus)}
    assert told == {OTHER_TENANT: None, TENANT: "idempotency_key: this idempotency key stands for another job already"}


def test_what_would_be_refused_today_is_known_by_its_own_tenant_alone(bus):
    deadline = "2027-01-15T08:00:10Z"  # ten seconds from NOW_US
    request = a_request(deadline=deadline, idempotency_key="k")
    bus.put(bus.sealed([request]))
    bus.receive(1)
    bus.world.clock.advance(20)
    bus.put(bus.sealed([request], reply_to=QUEUE), bus.sealed([request], reply_to=QUEUE, signer=bus.other))
    bus.receive(2)
    told = {row.tenant_id: (row.error_code, row.job_id is None) for row in _asked(bus)}
    assert told == {TENANT: (None, False), OTHER_TENANT: (ErrorCode.INVALID_FIELD, True)}


def test_a_revoked_key_is_no_tenants(bus):
    sealed = bus.sealed([a_request()], signer=bus.other)
    bus.ring.replace({})
    bus.put(sealed)
    bus.receive(1)
    assert (bus.dead(), bus.world.count(tables.job)) == (1, 0)


def test_what_is_not_stored_yet_is_not_acknowledged(bus, monkeypatch):
    error = OperationalError("INSERT", {}, Exception("the database is away"))
    real = bus.world.database.write

    def away(*_arguments, **_terms):
        raise error

    monkeypatch.setattr(bus.world.database, "write", away)
    bus.jobs.publish([a_request()])
    assert not bus.receiving.step()
    assert not bus.receiving.step()
    assert bus.inbox.settled == 0
    monkeypatch.setattr(bus.world.database, "write", real)
    bus.receive(1)
    assert (bus.world.count(tables.job), bus.dead()) == (1, 0)


def test_a_crash_between_commit_and_acknowledgement_doubles_nothing(bus):
    class Dying(Inbox):
        def acknowledge(self, deliveries):
            if deliveries:
                raise KeyboardInterrupt

    for _ in range(3):
        bus.jobs.publish([a_request(), a_request()], reply_to=QUEUE)
    dying = Dying(bus.url, [JOBS_QUEUE], 10)
    with pytest.raises(KeyboardInterrupt):
        bus.receiver(dying).step()
    dying.close()
    stored = bus.world.count(tables.job)
    assert stored > 0
    bus.receive(3)
    assert (bus.world.count(tables.job), bus.world.count(tables.reply)) == (6, 6)


def test_while_the_door_is_full_nothing_more_is_received(bus):
    class FullAtFirst:
        offers = 0

        def offer(self, identity, jobs, answer, also):
            self.offers += 1
            if self.offers < 4:
                raise DoorFull("full")
            bus.submitting.offer(identity, jobs, answer, also)

    bus.jobs.publish([a_request()])
    inbox = Inbox(bus.url, [JOBS_QUEUE], 10)
    door = FullAtFirst()
    assert bus.receiver(inbox, door).step()
    inbox.close()
    assert (door.offers, bus.world.count(tables.job)) == (4, 1)


def test_at_the_end_what_can_not_be_stored_stays_on_the_bus(bus):
    bus.submitting.close()
    bus.jobs.publish([a_request()])
    assert not bus.receiving.step()
    bus.inbox.close()
    assert bus.waiting() == 1
    with pytest.raises(BrokerError, match="stopping"):
        bus.submitting.offer(an_identity(TENANT), [], lambda _answer: None)


def test_a_message_that_can_never_be_stored_is_left_out_alone(bus):
    class Choosy:
        def offer(self, identity, jobs, answer, also):
            if b"poison" in jobs[0].job.body:
                threading.Thread(target=answer, args=(ValueError("no"),)).start()
            else:
                bus.submitting.offer(identity, jobs, answer, also)

    bus.jobs.publish([a_request("good")])
    bus.jobs.publish([a_request("poison")])
    bus.jobs.publish([a_request("good")])
    receiving = bus.receiver(bus.inbox, Choosy())
    while bus.inbox.settled < 3:
        assert receiving.step()
    assert (bus.world.count(tables.job), bus.dead()) == (2, 1)


def test_a_message_that_fails_beside_another_alone_is_not_left_out(bus):
    """Four at once: one bad, one that fails beside it, one for which the database is away, and one well."""

    class AllFour(Inbox):
        def receive(self, limit, wait_seconds):
            deliveries = []
            while len(deliveries) < 4:
                deliveries += super().receive(limit, wait_seconds)
            return deliveries

    class Together:
        def __init__(self):
            self.tries = defaultdict(int)

        def offer(self, tenant_id, jobs, answer, also):
            body = jobs[0].job.body
            name = next(name for name in (b"bad", b"beside", b"away", b"well") if name in body)
            self.tries[name] += 1
            error = {b"bad": ValueError("no"), b"away": BrokerError("the database is away")}.get(name)
            if name == b"beside" and self.tries[name] == 1:
                error = ValueError("with the bad one")
            if error and not (name == b"away" and self.tries[name] > 1):
                threading.Thread(target=answer, args=(error,)).start()
            else:
                bus.submitting.offer(tenant_id, jobs, answer, also)

    for name in ("bad", "beside", "away", "well"):
        bus.jobs.publish([a_request(name)])
    bus.inbox.close()
    inbox = AllFour(bus.url, [JOBS_QUEUE], 10)
    receiving = bus.receiver(inbox, door := Together())
    assert not receiving.step()
    assert (bus.world.count(tables.job), bus.dead()) == (2, 1)
    assert receiving.step()
    inbox.close()
    assert (bus.world.count(tables.job), bus.dead(), bus.waiting()) == (3, 1, 0)
    assert door.tries == {b"bad": 2, b"beside": 2, b"away": 2, b"well": 1}


def test_an_envelope_is_good_for_a_day(bus):
    sealed = bus.sealed([a_request()])
    bus.world.clock.advance(DAY_SECONDS + 1)
    bus.put(sealed)
    bus.receive(1)
    assert (bus.world.count(tables.job), bus.dead()) == (0, 1)
