"""What any lane's bus must do, said in kombu's own terms, so that stock transports and ours run the same cases.

A transport joins by a subclass of `BusContract` in `matrix.DRIVERS`, whose fixtures `features` and `private_features`
say where it is and what it can't do. The private one is a server of the test's own, for cases that break it. A case
that does not apply is skipped with a sentence, which the page docs/contract.md repeats.
"""

from __future__ import annotations

import threading
import time

import pytest
from kombu import Producer

from broker.bus.driver import BusUnavailable, PublishError
from broker.bus.inbox import Inbox
from broker.bus.publisher import Publisher
from tests.contract.bus_under_test import published, received, run_other_process

__all__ = ["BusContract"]


PATIENCE_SECONDS = 6.0


class BusContract:
    """Each test is one case; see the module's text."""

    def test_c01_a_message_arrives_as_it_was_sent(self, bus):
        queue = bus.queue()
        body = {"text": "grüße 東京 \x00", "none": None, "pi": 3.25, "list": [1, -2, True], "deep": {"a": {"b": []}}}
        bus.publish(queue, body, headers={"trace": "00-ab", "n": 7}, correlation_id="c-1")
        tap = bus.tap(queue)
        (message,) = tap.pump(PATIENCE_SECONDS, 1)
        assert message.decode() == body
        assert message.headers["trace"] == "00-ab"
        assert message.headers["n"] == 7
        assert message.properties["correlation_id"] == "c-1"
        message.ack()

    def test_bytes_that_are_not_text_arrive_unchanged(self, bus):
        queue = bus.queue()
        raw = bytes(range(256)) * 8
        bus.publish(queue, raw, content_type="application/octet-stream", content_encoding="binary")
        (message,) = bus.tap(queue).pump(PATIENCE_SECONDS, 1)
        assert bytes(message.body) == raw
        message.ack()

    def test_c03_publishing_to_a_bus_that_is_down_raises_in_time(self, bus):
        if bus.features.unreachable_url is None:
            pytest.skip("a bus in this process is never down")
        publisher = Publisher(bus.features.unreachable_url)
        began = time.monotonic()
        with pytest.raises(BusUnavailable):
            publisher.publish_events("q", [b"1"])
        assert time.monotonic() - began < 10

    def test_c03_a_queue_that_is_full_pushes_back(self, bus):
        url = bus.features.bounded_url or bus.features.url
        options = bus.features.options if bus.features.bounded_url else {**bus.features.options, "max_messages": 5}
        publisher, inbox = Publisher(url, options), Inbox(url, [name := bus.queue().name], 100, options)
        taken = 0
        with pytest.raises(PublishError, match="full"):  # noqa: PT012 (some buses look at their bound a little late)
            for _ in range(100):
                publisher.publish_events(name, [bus.features.bounded_message])
                taken += 1
        publisher.close()
        assert taken >= 5
        assert len(received(inbox, taken, PATIENCE_SECONDS)) == taken
        assert received(inbox, 1, 0.3) == []
        inbox.close()

    def test_c04_a_batch_is_confirmed_as_a_whole(self, bus):
        queue = bus.queue()
        producer = Producer(bus.connect().channel())
        with producer.batch(max_size=500):
            for number in range(500):
                producer.publish(number, exchange="", routing_key=queue.name, declare=[queue])
        tap = bus.tap(queue)
        tap.pump(PATIENCE_SECONDS, 500)
        assert sorted(tap.bodies()) == list(range(500))

    def test_c04_a_batch_names_the_message_it_could_not_send(self, bus):
        limit = bus.features.message_bytes_max
        queue = bus.queue()
        producer = Producer(bus.connect().channel())
        with pytest.raises(Exception, match="not confirmed") as caught, producer.batch():  # noqa: PT012 (the batch fails as a whole, at its end)
            for number in range(5):
                body = b"x" * (limit + 1) if number == 3 else b"small"
                producer.publish(body, exchange="", routing_key=queue.name, declare=[queue])
        assert list(caught.value.errors) == [3]
        assert len(bus.tap(queue).pump(0.2)) == 4

    def test_c05_an_acknowledged_message_never_returns(self, bus):
        queue = bus.queue()
        bus.publish(queue, 1)
        tap = bus.tap(queue)
        tap.pump(PATIENCE_SECONDS, 1)[0].ack()
        tap.close()
        assert bus.tap(queue).pump(bus.features.lease_seconds * 1.5) == []

    def test_c06_prefetch_is_exact(self, bus):
        queue = bus.queue()
        bus.publish(queue, *range(10))
        tap = bus.tap(queue, prefetch=2)
        assert len(tap.pump(0.4)) == 2
        tap.messages[0].ack()
        assert len(tap.pump(0.4)) == 3
        for number in range(1, 10):
            tap.pump(PATIENCE_SECONDS, number + 1)
            tap.messages[number].ack()
        tap.pump(0.2)
        assert sorted(tap.bodies()) == list(range(10))

    def test_c07_a_message_given_back_comes_again_as_one_copy(self, bus):
        queue = bus.queue()
        bus.publish(queue, "again")
        tap = bus.tap(queue, prefetch=1)
        for attempt in range(1, 4):
            tap.pump(PATIENCE_SECONDS, attempt)
            assert len(tap.messages) == attempt
            if bus.features.counts_attempts:
                assert tap.messages[-1].delivery_info["attempts"] == attempt
            tap.messages[-1].reject(requeue=True)
        tap.pump(PATIENCE_SECONDS, 4)[3].ack()
        tap.close()
        assert bus.tap(queue).pump(bus.features.lease_seconds * 1.5) == []

    def test_c08_a_rejected_message_never_returns(self, bus):
        queue = bus.queue()
        bus.publish(queue, "bad")
        tap = bus.tap(queue)
        tap.pump(PATIENCE_SECONDS, 1)[0].reject(requeue=False)
        tap.close()
        assert bus.tap(queue).pump(bus.features.lease_seconds * 1.5) == []
        assert [reason for _, reason in bus.features.dead_letters(queue.name)] == ["rejected"]

    def test_c10_closing_gives_unacknowledged_messages_back(self, bus):
        queue = bus.queue()
        bus.publish(queue, *range(3))
        tap = bus.tap(queue)
        tap.pump(PATIENCE_SECONDS, 3)
        tap.close()
        again = bus.tap(queue)
        again.pump(3.0, 3)
        assert sorted(again.bodies()) == [0, 1, 2]

    def test_c11_a_long_held_message_stays_ours(self, bus):
        queue = bus.queue()
        bus.publish(queue, "long")
        holder = bus.tap(queue, prefetch=1)
        (message,) = holder.pump(PATIENCE_SECONDS, 1)
        rival = bus.tap(queue)
        queue(bus.connect().channel()).declare()  # a second connection of this process
        assert rival.pump(bus.features.lease_seconds * 2.5) == []
        message.ack()
        assert rival.pump(bus.features.lease_seconds * 0.5) == []

    def test_c12_the_largest_message_passes_and_a_larger_one_is_refused(self, bus):
        limit = bus.features.message_bytes_max
        queue = bus.queue()
        fits = b"\xff" * (limit - 1_024)  # what kombu adds is less than that
        bus.publish(queue, fits, content_type="application/octet-stream")
        with pytest.raises(Exception, match=r"not confirmed|too large"):
            bus.publish(queue, b"\xff" * (limit + 1), content_type="application/octet-stream")
        (message,) = bus.tap(queue).pump(PATIENCE_SECONDS, 1)
        assert bytes(message.body) == fits

    def test_c13_foreign_bytes_do_not_stop_the_good_ones(self, bus):
        name = bus.queue().name
        inbox = bus.inbox(name)
        inbox.receive(1, 0)  # makes the queue
        bus.features.inject(name, b"\xc1not ours")
        bus.features.inject(name, b"")
        publisher = Publisher(bus.features.url, bus.features.options)
        publisher.publish_events(name, [b"%d" % number for number in range(20)])
        publisher.close()
        deliveries = received(inbox, 20, PATIENCE_SECONDS)
        inbox.acknowledge(deliveries)
        inbox.close()  # settling may take its time; closing waits for it
        assert sorted(int(delivery.envelope) for delivery in deliveries) == list(range(20))
        dead = bus.features.dead_letters(name)
        assert [data for data, _ in dead] == [b"\xc1not ours", b""]
        assert all(reason.startswith(("undecodable", "rejected")) for _, reason in dead)

    def test_c14_too_many_attempts_end_in_the_dead_letters(self, bus):
        options = bus.features.three_attempts
        if options is None:
            pytest.skip("classic queues don't count deliveries; the database counts attempts")
        queue = bus.queue(**options)
        bus.publish(queue, "poison", "good")
        tap = bus.tap(queue, prefetch=1, **options)
        for count in range(1, 10):
            if len(tap.pump(0.7, count)) < count:
                break
            message = tap.messages[-1]
            if message.decode() == "good":
                message.ack()
            else:
                message.reject(requeue=True)
        assert sorted(tap.bodies()) == ["good", "poison", "poison", "poison"]
        tap.close()  # settling may take its time; closing waits for it
        assert [reason for _, reason in bus.features.dead_letters(queue.name)] == [bus.features.poison_reason]

    def test_c15_size_and_purge(self, bus):
        queue = bus.queue()
        bus.publish(queue, *range(7))
        channel = bus.connect().channel()
        bound = queue(channel)
        count = bound.queue_declare(passive=True).message_count
        assert count == 7 or not bus.features.counts_messages
        bound.purge()
        assert bus.tap(queue).pump(0.3) == []

    def test_c16_nothing_is_lost_or_doubled(self, bus):
        queue = bus.queue()
        bus.publish(queue, *range(50))
        tap = bus.tap(queue)
        tap.pump(PATIENCE_SECONDS, 50)
        tap.pump(0.2)
        assert sorted(tap.bodies()) == list(range(50))

    def test_c17_waiting_for_nothing_ends_in_time(self, bus):
        tap = bus.tap(bus.queue())
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            tap.connection.drain_events(timeout=1)
        assert 0.8 <= time.monotonic() - began <= 2.0

    def test_c18_an_idle_consumer_hears_at_once(self, bus, record_property):
        queue = bus.queue()
        connection = bus.connect()
        tap = bus.tap(queue)
        waits_ms = []
        for number in range(1, 12):
            timer = threading.Timer(0.02, bus.publish, (queue, 1), {"connection": connection, "headers": {}})
            timer.start()
            while not timer.finished.is_set():
                time.sleep(0.0005)
            began = time.perf_counter()
            tap.pump(PATIENCE_SECONDS, number)
            waits_ms.append((time.perf_counter() - began) * 1_000)
            timer.join()
        median_ms = sorted(waits_ms)[len(waits_ms) // 2]
        record_property("idle_latency_p50_ms", median_ms)
        assert median_ms < bus.features.latency_ms_max

    def test_c19_an_idle_consumer_closes_at_once(self, bus):
        tap = bus.tap(bus.queue())
        tap.pump(0.1)
        began = time.monotonic()
        tap.close()
        assert time.monotonic() - began < 3.0

    def test_c20_messages_may_be_acknowledged_from_other_threads(self, bus):
        queue = bus.queue()
        bus.publish(queue, *range(40))
        tap = bus.tap(queue, prefetch=8)
        seen = 0
        while seen < 40:
            tap.pump(PATIENCE_SECONDS, seen + 1)
            threads = [threading.Thread(target=message.ack) for message in tap.messages[seen:]]
            seen = len(tap.messages)
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        tap.close()
        assert sorted(tap.bodies()) == list(range(40))
        assert bus.tap(queue).pump(bus.features.lease_seconds * 1.5) == []

    def test_c21_two_urls_are_two_buses(self, private_bus):
        bus = private_bus
        queue = bus.queue()
        bus.publish(queue, "here")
        assert bus.tap(queue, connection=bus.connect(bus.features.isolated_url)).pump(0.5) == []
        assert len(bus.tap(queue).pump(PATIENCE_SECONDS, 1)) == 1

    def test_c22_a_queue_deleted_under_a_consumer_is_not_met_with_silence(self, private_bus):
        bus = private_bus
        queue = bus.queue()
        tap = bus.tap(queue)
        tap.pump(0.1)
        bus.connect().channel().queue_delete(queue.name)
        if bus.features.queues_appear_by_themselves:
            bus.publish(queue, "after")
            assert [message.decode() for message in tap.pump(PATIENCE_SECONDS, 1)] == ["after"]
            return
        errors = tap.connection.connection_errors + tap.connection.channel_errors
        with pytest.raises(errors):
            tap.connection.drain_events(timeout=30)

    def test_c22_an_inbox_and_a_publisher_outlive_the_deletion_of_their_queue(self, private_bus):
        bus = private_bus
        name = bus.queue().name
        inbox, publisher = bus.inbox(name), Publisher(bus.features.url, bus.features.options)
        publisher.publish_events(name, [b"before"])
        inbox.acknowledge(received(inbox, 1, PATIENCE_SECONDS))
        time.sleep(bus.features.settle_seconds)
        bus.connect().channel().queue_delete(name)
        published(publisher, name, [b"after"], 30)
        assert {delivery.envelope for delivery in received(inbox, 1, PATIENCE_SECONDS)} == {b"after"}
        publisher.close()

    def test_c23_held_messages_survive_the_death_of_the_bus_and_all_reconnect(self, private_bus):
        bus = private_bus
        if bus.features.restart is None:
            pytest.skip("this bus has no process of its own to restart")
        name = bus.queue().name
        inbox, publisher = bus.inbox(name), Publisher(bus.features.url, bus.features.options)
        publisher.publish_events(name, [b"1", b"2", b"3"])
        held = received(inbox, 3, PATIENCE_SECONDS)
        time.sleep(bus.features.settle_seconds)
        bus.features.restart()
        published(publisher, name, [b"4"], 30)
        again = received(inbox, 4, 30)
        inbox.acknowledge(held)  # from before: harmless
        assert {delivery.envelope for delivery in again} == {b"1", b"2", b"3", b"4"}
        inbox.acknowledge(again)
        assert received(inbox, 1, bus.features.lease_seconds * 1.5) == []
        publisher.close()

    def test_c24_celery_may_use_its_event_loop(self, bus):
        assert bus.connect().transport.implements.asynchronous is True

    def test_settling_twice_is_harmless(self, bus):
        queue = bus.queue()
        bus.publish(queue, 1, 2)
        tap = bus.tap(queue, prefetch=1)
        (first,) = tap.pump(PATIENCE_SECONDS, 1)
        tag, channel = first.delivery_tag, first.channel
        first.ack()
        channel.basic_ack(tag)
        channel.basic_reject(tag, requeue=True)
        tap.pump(PATIENCE_SECONDS, 2)
        tap.pump(0.2)
        assert tap.bodies() == [1, 2]

    def test_two_consumers_share_and_do_not_copy(self, bus):
        queue = bus.queue()
        taps = [bus.tap(queue, prefetch=5), bus.tap(queue, prefetch=5)]
        bus.publish(queue, *range(40))
        deadline = time.monotonic() + PATIENCE_SECONDS
        while sum(len(tap.messages) for tap in taps) < 40 and time.monotonic() < deadline:
            for tap in taps:
                tap.pump(0.05)
                for message in tap.messages:
                    if not message.acknowledged:
                        message.ack()
        assert sorted(taps[0].bodies() + taps[1].bodies()) == list(range(40))
        assert all(tap.messages for tap in taps)

    def test_c02_a_process_that_exits_has_sent_what_it_published(self, bus):
        if not bus.features.other_processes:
            pytest.skip("the bus lives in this process alone")
        queue = bus.queue()
        queue(bus.connect().channel()).declare()
        run_other_process(PUBLISH_AND_EXIT, bus.features, queue.name).wait(30)
        assert len(bus.tap(queue).pump(PATIENCE_SECONDS, 20)) == 20

    def test_c09_messages_of_a_killed_consumer_come_again_once(self, bus):
        if not bus.features.other_processes:
            pytest.skip("the bus lives in this process alone")
        queue = bus.queue()
        bus.publish(queue, "held")
        other = run_other_process(HOLD_FOR_EVER, bus.features, queue.name)
        assert other.stdout.readline() == b"held\n"
        other.kill()
        other.wait()
        tap = bus.tap(queue)
        tap.pump(2 * bus.features.lease_seconds + 8, 1)
        tap.pump(0.5)
        assert tap.bodies() == ["held"]


PUBLISH_AND_EXIT = """
for number in range(20):
    bus.publish(bus.queue(name), number, connection=connection)
"""
HOLD_FOR_EVER = """
tap = bus.tap(bus.queue(name), connection=connection)
tap.pump(30, 1)
print("held", flush=True)
tap.pump(600)
"""
