"""The queues' promises, each told with its own clock; then all of them at once against a simple account."""

from __future__ import annotations

from uuid import uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from infra.emulators.servicebus.queues.description import QueueDescription, QueueStatus, RefusedDescription, check
from infra.emulators.servicebus.queues.message import content_of
from infra.emulators.servicebus.queues.namespace import InvalidName, Namespace, QueueExists
from infra.emulators.servicebus.queues.queue import Queue
from infra.emulators.servicebus.queues.refusals import (
    EntityDisabled,
    LockLost,
    MessageNotFound,
    MessageTooLarge,
    NotAllowed,
    QueueFull,
)
from infra.emulators.servicebus.wire.encode import encode, encode_fields
from infra.emulators.servicebus.wire.values import Symbol, Timestamp, UInt

LOCK_MS = 1_000


def message(name="m", *, ttl_ms=None, at_ms=None, size=1):
    header = b"" if ttl_ms is None else encode_fields(0x70, [None, None, UInt(ttl_ms)])
    annotations = {} if at_ms is None else {Symbol("x-opt-scheduled-enqueue-time"): Timestamp(at_ms)}
    return content_of(
        header
        + b"\x00\x53\x72"
        + encode(annotations)
        + encode_fields(0x73, [name])
        + b"\x00\x53\x75"
        + encode(b"x" * size)
    )


def queue(**changes):
    return Queue.with_dead_letters(
        "q", QueueDescription(**{"lock_duration_ms": LOCK_MS, "max_delivery_count": 3, **changes})
    )


def names(q, now=0):
    return [each.content.message_id for each in q.peek(now, 0, 1_000)]


def test_messages_come_in_the_order_of_their_numbers():
    q = queue()
    assert q.send(0, [message("a"), message("b"), message("c")]) == [1, 2, 3]
    assert [each.sequence for each in q.take(0, 2)] == [1, 2]
    assert [each.sequence for each in q.take(0, 2)] == [3]
    assert q.take(0, 2) == []


def test_a_locked_message_is_nobody_elses_until_the_lock_ends():
    q = queue()
    q.send(0, [message()])
    (first,) = q.take(0, 1)
    assert q.take(LOCK_MS - 1, 1) == []
    (second,) = q.take(LOCK_MS, 1)
    assert second.token != first.token
    with pytest.raises(LockLost):
        q.complete(LOCK_MS, first.token)
    q.complete(LOCK_MS, second.token)
    assert names(q, LOCK_MS) == []


def test_a_renewed_lock_holds():
    q = queue()
    q.send(0, [message()])
    (held,) = q.take(0, 1)
    assert q.renew(900, [held.token]) == [1_900]
    assert q.take(1_899, 1) == []
    assert len(q.take(1_900, 1)) == 1
    with pytest.raises(LockLost):
        q.renew(1_900, [held.token])


def test_renewing_several_is_all_or_nothing():
    q = queue()
    q.send(0, [message(), message()])
    (held, _) = q.take(0, 2)
    with pytest.raises(LockLost):
        q.renew(500, [held.token, uuid4()])
    assert len(q.take(LOCK_MS, 2)) == 2


def test_an_abandoned_message_comes_again_in_its_place_and_counts():
    q = queue()
    q.send(0, [message("a"), message("b")])
    (held,) = q.take(0, 1)
    q.abandon(0, held.token, {"tried": "once"})
    again = q.peek(0, 0, 1)[0]
    assert (again.delivery_count, again.extra) == (1, {"tried": "once"})
    assert [each.sequence for each in q.take(0, 2)] == [1, 2]


def test_a_released_message_does_not_count():
    q = queue()
    q.send(0, [message()])
    for _ in range(9):
        q.release(0, q.take(0, 1)[0].token)
    assert q.peek(0, 0, 1)[0].delivery_count == 0


@pytest.mark.parametrize("lose", ["abandon", "expiry"])
def test_too_many_failed_deliveries_end_in_the_dead_letters(lose):
    q = queue()
    q.send(0, [message("poison")])
    now = 0
    for _ in range(3):
        (held,) = q.take(now, 1)
        if lose == "abandon":
            q.abandon(now, held.token)
        else:
            now += LOCK_MS
    assert q.take(now, 1) == []
    dead = q.dead.peek(now, 0, 1)[0]
    assert dead.extra["DeadLetterReason"] == "MaxDeliveryCountExceeded"
    assert dead.extra["DeadLetterErrorDescription"] == "Message could not be consumed after 3 delivery attempts."
    assert (dead.sequence, dead.delivery_count) == (1, 3)


def test_a_dead_letter_stays_a_dead_letter():
    q = queue()
    q.send(0, [message()])
    q.dead_letter(0, q.take(0, 1)[0].token, "reason", "text", {"more": "words"})
    for now in range(0, 9 * LOCK_MS, LOCK_MS):
        (held,) = q.dead.take(now, 1)
    assert q.dead.peek(now, 0, 1)[0].extra == {
        "DeadLetterReason": "reason",
        "DeadLetterErrorDescription": "text",
        "more": "words",
    }
    with pytest.raises(NotAllowed):
        q.dead.dead_letter(now, held.token, None, None)
    with pytest.raises(NotAllowed):
        q.dead.send(now, [message()])
    q.dead.complete(now, held.token)
    assert q.counts(now).dead == 0


def test_a_deferred_message_is_found_by_its_number_alone():
    q = queue()
    q.send(0, [message("a"), message("b")])
    q.defer(0, q.take(0, 1)[0].token)
    assert [each.sequence for each in q.take(0, 5)] == [2]
    (taken,) = q.take_deferred(0, [1])
    with pytest.raises(MessageNotFound):
        q.take_deferred(0, [1])  # under a lock
    (again,) = q.take_deferred(LOCK_MS, [1])
    with pytest.raises(LockLost):
        q.complete(LOCK_MS, taken.token)
    q.complete(LOCK_MS, again.token)
    with pytest.raises(MessageNotFound):
        q.take_deferred(LOCK_MS, [1])


def test_scheduled_messages_become_active_with_a_new_number():
    q = queue()
    assert q.send(0, [message("later", at_ms=5_000), message("now"), message("past", at_ms=0)]) == [1, 2, 3]
    assert q.counts(0)[:3] == (2, 0, 1)
    assert [each.sequence for each in q.take(4_999, 5)] == [2, 3]
    assert q.next_due_ms() <= 5_000
    assert 4 in [each.sequence for each in q.take(5_000, 5)]
    assert next(each for each in q.peek(5_000, 4, 1)).enqueued_ms == 5_000


def test_a_scheduled_message_can_be_cancelled_until_its_time():
    q = queue()
    (first, second) = q.send(0, [message(at_ms=100), message(at_ms=100)])
    with pytest.raises(MessageNotFound):
        q.cancel_scheduled(0, [first, 99])
    q.cancel_scheduled(0, [first])
    assert q.counts(0).scheduled == 1
    with pytest.raises(MessageNotFound):
        q.cancel_scheduled(100, [second])


def test_time_to_live():
    q = queue(dead_letters_expired=True, default_ttl_ms=10_000)
    q.send(0, [message("short", ttl_ms=100), message("long", ttl_ms=60_000), message("default")])
    assert names(q, 100) == ["long", "default"]
    assert names(q, 10_000) == []  # the queue's own limit holds for those that ask for more
    assert q.dead.peek(10_000, 0, 9)[0].extra["DeadLetterReason"] == "TTLExpiredException"
    assert len(q.dead.peek(1_000_000, 0, 9)) == 3  # nothing expires among the dead


def test_expired_messages_are_dropped_where_nobody_wants_them():
    q = queue()
    q.send(0, [message(ttl_ms=100), message(ttl_ms=100), message(ttl_ms=100)])
    (held, lost) = q.take(50, 2)
    q.defer(50, lost.token)
    q.complete(200, held.token)  # a lock outlives its message's time
    assert q.take(200, 5) == []
    assert q.counts(200)[:5] == (0, 1, 0, 0, 0)


def test_duplicates_within_the_window_are_dropped():
    q = queue(requires_duplicate_detection=True, duplicate_window_ms=1_000)
    assert q.send(0, [message("a"), message("b"), message("a")]) == [1, 2, 1]
    q.complete(0, q.take(0, 1)[0].token)
    q.send(999, [message("a")])
    assert names(q, 999) == ["b"]
    q.send(1_000, [message("a")])
    assert names(q, 1_000) == ["b", "a"]


def test_a_batch_that_does_not_fit_leaves_nothing():
    q = queue(max_message_kilobytes=1)
    with pytest.raises(MessageTooLarge, match="takes 1024"):
        q.send(0, [message(size=10), message(size=1_200)])
    assert names(q) == []


def test_a_full_queue_refuses():
    q = queue(max_size_megabytes=1, max_message_kilobytes=1_024)
    q.send(0, [message(size=900_000)])
    with pytest.raises(QueueFull, match="quota"):
        q.send(0, [message(size=200_000)])


def test_a_disabled_queue_refuses_messages():
    for status in (QueueStatus.DISABLED, QueueStatus.SEND_DISABLED):
        with pytest.raises(EntityDisabled):
            queue(status=status).send(0, [message()])
    queue(status=QueueStatus.RECEIVE_DISABLED).send(0, [message()])


def test_receive_and_delete_keeps_nothing():
    q = queue()
    q.send(0, [message()])
    assert q.take(0, 1, lock=False)[0].token is None
    assert q.counts(0) == (0, 0, 0, 0, 0, 0)


def test_descriptions_out_of_range():
    for changes in ({"max_delivery_count": 0}, {"requires_session": True}, {"lock_duration_ms": 301_000}):
        with pytest.raises(RefusedDescription):
            check(QueueDescription(**changes))
    with pytest.raises(RefusedDescription):
        check(QueueDescription(lock_duration_ms=4_000))
    check(QueueDescription(lock_duration_ms=4_000), strict=False)
    with pytest.raises(RefusedDescription, match="can't be changed"):
        check(QueueDescription(requires_duplicate_detection=True), QueueDescription())


def test_a_namespace_knows_names_without_regard_to_case():
    namespace = Namespace()
    namespace.create(0, "Orders/EU", QueueDescription())
    with pytest.raises(QueueExists):
        namespace.create(0, "orders/eu", QueueDescription())
    for name in ("", "/x", "a//b", "$cbs", "a" * 261):
        with pytest.raises(InvalidName):
            namespace.create(0, name, QueueDescription())
    assert namespace.find("ORDERS/eu").name == "Orders/EU"
    assert namespace.find("orders/EU/$deadLetterQueue").name == "Orders/EU/$DeadLetterQueue"
    assert namespace.find("nowhere") is None
    assert namespace.delete("ORDERS/EU") is not None
    assert namespace.delete("ORDERS/EU") is None


class QueueAccount(RuleBasedStateMachine):
    """Whatever is done in whatever order: no message is lost, doubled, or under two locks."""

    def __init__(self):
        super().__init__()
        self.now = 0
        self.q = queue(dead_letters_expired=True)
        self.sent = 0
        self.done = 0
        self.held = {}  # token -> when the lock ends
        self.deferred = set()

    @rule(count=st.integers(1, 4), later=st.sampled_from([None, 300, 2_500]), ttl=st.sampled_from([None, 1_500]))
    def send(self, count, later, ttl):
        at_ms = None if later is None else self.now + later
        self.q.send(self.now, [message(f"{self.sent + n}", at_ms=at_ms, ttl_ms=ttl) for n in range(count)])
        self.sent += count

    @rule(count=st.integers(1, 5))
    def take(self, count):
        taken = self.q.take(self.now, count)
        assert len({each.sequence for each in taken}) == len(taken)
        assert [each.sequence for each in taken] == sorted(each.sequence for each in taken)
        self.held.update({each.token: self.now + LOCK_MS for each in taken})

    @rule(
        how=st.sampled_from(["complete", "abandon", "release", "defer", "dead_letter", "renew"]),
        pick=st.integers(0, 99),
    )
    def settle(self, how, pick):
        if not self.held:
            return
        token = list(self.held)[pick % len(self.held)]
        end = self.held.pop(token)
        arguments = {"dead_letter": ("why", None)}.get(how, ())
        act = getattr(self.q, how)
        if end <= self.now:
            with pytest.raises(LockLost):
                act(self.now, [token] if how == "renew" else token, *arguments)
        elif how == "renew":
            assert act(self.now, [token]) == [self.now + LOCK_MS]
            self.held[token] = self.now + LOCK_MS
        else:
            act(self.now, token, *arguments)
            self.done += how == "complete"

    @rule(milliseconds=st.sampled_from([1, 500, LOCK_MS, 3 * LOCK_MS]))
    def wait(self, milliseconds):
        due = self.q.next_due_ms()
        before = self.q.counts(self.now)
        self.now += milliseconds
        if due is None or due > self.now:
            assert self.q.counts(self.now) == before  # nothing happens before the time it was announced for

    @rule(pick=st.integers(0, 99))
    def take_deferred(self, pick):
        waiting = [each for each in self.q.peek(self.now, 0, 1_000) if each.state == 1 and each.lock_token is None]
        if waiting:
            (taken,) = self.q.take_deferred(self.now, [waiting[pick % len(waiting)].sequence])
            self.held[taken.token] = self.now + LOCK_MS

    @invariant()
    def nothing_is_lost_or_doubled(self):
        counts = self.q.counts(self.now)
        assert counts.active + counts.deferred + counts.scheduled + counts.dead + self.done == self.sent
        everything = self.q.peek(self.now, 0, 1_000) + self.q.dead.peek(self.now, 0, 1_000)
        ids = [each.content.message_id for each in everything]
        assert len(ids) == len(set(ids)) == self.sent - self.done
        assert counts.size_bytes == sum(each.content.size_bytes for each in everything)

    @invariant()
    def locks_are_those_handed_out(self):
        counts = self.q.counts(self.now)
        assert counts.locked == sum(end > self.now for end in self.held.values())


TestQueueAccount = QueueAccount.TestCase
TestQueueAccount.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
