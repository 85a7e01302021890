"""What the Pub/Sub driver promises beyond the contract, on Google's emulator."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from broker.bus.driver import BusUnavailable, MessageRefused, PublishError, QueueMissing
from broker.bus.drivers.pubsub import PubSubDriver
from broker.bus.drivers.pubsub.sdk import open_clients, read_url
from broker.bus.publisher import Publisher
from broker.bus.topology import open_connection
from tests.contract.test_pubsub_bus import features_of
from tests.proxy import FaultProxy


def driver_of(server, **options):
    return PubSubDriver(*read_url(server.url, {"lease_seconds": 1, **options}))


@pytest.fixture
def queue(private_pubsub, request):
    name = request.node.name[:100].replace("[", "-").replace("]", "")
    maker = driver_of(private_pubsub, create=True)
    maker.ensure(name)
    yield name
    maker.delete(name)
    maker.close()


@pytest.fixture
def driver(private_pubsub):
    opened = driver_of(private_pubsub)
    yield opened
    opened.close()


def test_a_lease_that_is_not_renewed_ends_and_the_attempt_is_counted(driver, queue):
    driver.publish(queue, [b"m"])
    (first,) = driver.receive(queue, 5, 5)
    (second,) = driver.receive(queue, 5, 5)
    assert (first.attempts, second.attempts) == (1, 2)
    assert driver.ack(queue, [second.handle]) == {}
    assert driver.receive(queue, 5, 1.5) == []


def test_an_extended_lease_stays_and_one_that_ended_is_named(driver, queue):
    driver.publish(queue, [b"m"])
    (lease,) = driver.receive(queue, 1, 5)
    for _ in range(3):
        time.sleep(0.6)
        assert driver.extend(queue, [lease.handle], 1.0) == {}
    assert driver.receive(queue, 1, 0.1) == []
    time.sleep(1.2)
    assert list(driver.extend(queue, [lease.handle], 1.0)) == [lease.handle]


def test_a_deadline_that_is_shorter_than_the_lease_is_extended_at_once(private_pubsub, queue):
    driver = driver_of(private_pubsub, lease_seconds=5)
    driver.ensure(queue)
    driver.publish(queue, [b"m"])
    assert len(driver.receive(queue, 1, 5)) == 1
    assert driver.receive(queue, 1, 3) == []
    driver.close()


def test_a_message_given_back_with_a_delay_comes_after_it(driver, queue):
    driver.publish(queue, [b"m"])
    (lease,) = driver.receive(queue, 1, 5)
    began = time.monotonic()
    driver.release(queue, [lease.handle], 2.0)
    assert len(driver.receive(queue, 1, 6)) == 1
    assert time.monotonic() - began >= 1.5


def test_dead_letters_have_their_reasons_one_by_one(driver, private_pubsub, queue):
    driver.publish(queue, [b"1", b"2"])
    for reason in ("undecodable: DecodeError", "rejected"):
        driver.dead_letter(queue, driver.receive(queue, 1, 5), reason)
    found = features_of(private_pubsub.url).dead_letters(queue)
    assert found == [(b"1", "undecodable: DecodeError"), (b"2", "rejected")]
    assert driver.receive(queue, 1, 1.5) == []


def test_more_than_fits_a_request_goes_in_several(driver, queue):
    bodies = [bytes([number]) * 2_000_000 for number in range(12)]  # 24 MB; Google takes 10
    driver.publish(queue, bodies)
    got = []
    while len(got) < 12:
        leases = driver.receive(queue, 100, 5)
        got += [lease.data for lease in leases]
        driver.ack(queue, [lease.handle for lease in leases])
    assert sorted(got) == bodies


def test_thousands_are_sent_held_and_settled(driver, queue):
    driver.publish(queue, [b"%d" % number for number in range(2_500)])
    leases = []
    while len(leases) < 2_500:
        leases += driver.receive(queue, 1_000, 5)
        assert driver.extend(queue, [lease.handle for lease in leases], 5.0) == {}
    assert driver.ack(queue, [lease.handle for lease in leases]) == {}
    assert len({lease.data for lease in leases}) == 2_500
    assert driver.receive(queue, 1_000, 1.5) == []


def test_the_largest_message_passes(driver, queue):
    body = b"\xff" * driver.max_message_bytes
    assert len(body) == 9_000_000
    driver.publish(queue, [body])
    assert [lease.data for lease in driver.receive(queue, 1, 5)] == [body]


def test_a_request_that_google_refuses_is_named_and_the_others_are_sent(driver, queue):
    with pytest.raises(PublishError, match="empty") as caught:
        driver.publish(queue, [b"x" * 9_000_000, b"y" * 9_000_000, b""])
    assert list(caught.value.errors) == [1, 2]
    assert isinstance(caught.value.errors[1], MessageRefused)
    assert [lease.data[:1] for lease in driver.receive(queue, 10, 5)] == [b"x"]


def test_what_was_published_before_a_cut_is_known(private_pubsub, queue):
    with FaultProxy("127.0.0.1", private_pubsub.port) as proxy:
        # Longer than gRPC waits between two attempts to connect, 2 s and a fifth of jitter: what comes after heal()
        # would be given up before the next attempt.
        settings = {"endpoint": f"127.0.0.1:{proxy.port}", "retry_seconds": 3.0}
        driver = PubSubDriver(*read_url(private_pubsub.url, settings))
        proxy.cut_when(b"marker", then=proxy.refuse)
        with pytest.raises(PublishError) as caught:
            driver.publish(queue, [b"0" * 9_000_000, b"marker" * 1_000_000, b"2"])
        assert list(caught.value.errors) == [1, 2]
        assert isinstance(caught.value.errors[1], BusUnavailable)
        proxy.heal()
        driver.publish(queue, [b"3"])
        assert sorted(len(lease.data) for lease in driver.receive(queue, 10, 5)) == [1, 9_000_000]
        driver.close()


def test_a_bus_that_hangs_is_given_up_in_time(private_pubsub, queue):
    with FaultProxy("127.0.0.1", private_pubsub.port) as proxy:
        settings = {"endpoint": f"127.0.0.1:{proxy.port}", "confirm_seconds": 1.0, "retry_seconds": 1.0}
        driver = PubSubDriver(*read_url(private_pubsub.url, settings))
        driver.publish(queue, [b"1"])
        proxy.black_hole()
        for call in (lambda: driver.publish(queue, [b"2"]), lambda: driver.ensure(queue)):
            began = time.monotonic()
            with pytest.raises(BusUnavailable):
                call()
            assert time.monotonic() - began < 3
        proxy.heal()
        driver.close()


def test_a_wake_ends_a_receive_and_takes_no_message_along(driver, private_pubsub, queue):
    got = []
    waiting = threading.Thread(target=lambda: got.append(driver.receive(queue, 10, 30)))
    waiting.start()
    time.sleep(0.3)
    began = time.monotonic()
    driver.wake()
    waiting.join(2)
    assert got == [[]]
    other = driver_of(private_pubsub)
    other.publish(queue, [b"m"])
    assert [lease.attempts for lease in other.receive(queue, 1, 5)] == [1]
    assert time.monotonic() - began < 1
    other.close()


def test_a_missing_queue_is_named_with_the_way_to_make_it(driver):
    for call in (
        lambda: driver.receive("nowhere", 1, 0),
        lambda: driver.publish("nowhere", [b"x"]),
        lambda: driver.ensure("nowhere"),
        lambda: driver.size("nowhere"),
        lambda: driver.purge("nowhere"),
    ):
        with pytest.raises(QueueMissing, match=r"'nowhere'.*`broker bus apply` makes"):
            call()
    driver.delete("nowhere")
    assert list(driver.ack("nowhere", ["projects/private/subscriptions/nowhere:1"])) == [
        "projects/private/subscriptions/nowhere:1"
    ]


def test_a_publisher_is_told_that_a_topic_would_drop_its_messages(private_pubsub, queue):
    clients = open_clients(read_url(private_pubsub.url)[1])
    clients.subscriber.delete_subscription(subscription=f"projects/private/subscriptions/{queue}")
    publisher = Publisher(private_pubsub.url)
    with pytest.raises(BusUnavailable, match=f"the subscription '{queue}' is missing; `broker bus apply`"):
        publisher.publish_events(queue, [b"lost"])
    publisher.close()


def test_a_subscription_whose_topic_was_made_anew_is_not_taken_for_whole(driver, private_pubsub, queue):
    clients = open_clients(read_url(private_pubsub.url)[1])
    clients.publisher.delete_topic(topic=f"projects/private/topics/{queue}")
    clients.publisher.create_topic(name=f"projects/private/topics/{queue}")
    with pytest.raises(QueueMissing, match="belongs to '_deleted-topic_'"):
        driver.ensure(queue)


def test_a_name_that_google_does_not_take_is_refused(private_pubsub):
    driver = driver_of(private_pubsub, create=True)
    with pytest.raises(ValueError, match=r"'q'.*Invalid \[topics\] name"):
        driver.ensure("q")
    driver.close()


def test_a_closed_driver_gives_back_and_refuses(driver, private_pubsub, queue):
    other = driver_of(private_pubsub, lease_seconds=30)
    other.publish(queue, [b"1"])
    (lease,) = other.receive(queue, 1, 5)
    other.extend(queue, [lease.handle], 30)
    other.close()
    other.close()
    assert [lease.data for lease in driver.receive(queue, 1, 3)] == [b"1"]
    for call in (lambda: other.publish(queue, [b"2"]), lambda: other.receive(queue, 1, 1)):
        with pytest.raises(BusUnavailable, match="closed"):
            call()


def test_an_idle_worker_ends_within_three_seconds(private_pubsub, queue):
    url = f"{private_pubsub.url}&lease_seconds=1"
    publisher = Publisher(url)
    publisher.publish_shards(queue, [b"1"])
    publisher.close()
    worker = subprocess.Popen([sys.executable, "-c", IDLE_WORKER, url, queue], stdout=subprocess.PIPE)
    try:
        assert worker.stdout.readline() == b"1\n"
        time.sleep(1)  # its acknowledgement is settled and its next pull is under way
        began = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(10) == 0
        assert time.monotonic() - began < 3
    finally:
        worker.kill()
        worker.communicate()


IDLE_WORKER = """
import os, sys
from broker.bus.apps import worker_app

app = worker_app("idle", sys.argv[1], [sys.argv[2]], 4, run_shard=lambda envelope: os.write(1, envelope + b"\\n"))
app.Worker(pool_cls="threads", without_gossip=True, without_mingle=True, without_heartbeat=True, quiet=True).start()
"""


def test_the_variable_of_googles_tools_names_the_emulator(private_pubsub, queue, monkeypatch):
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", private_pubsub.endpoint)
    driver = PubSubDriver(*read_url("lanepubsub://private/"))
    driver.ensure(queue)
    driver.close()


def test_google_itself_is_not_asked_without_credentials(monkeypatch, tmp_path):
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "absent.json"))
    with pytest.raises(BusUnavailable, match=r"pubsub.googleapis.com needs Google credentials"):
        PubSubDriver(*read_url("lanepubsub://private/"))


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("lanepubsub:///x", "names a project"),
        ("lanepubsub://p/?colour=red", "colour"),
        ("lanepubsub://p/?lease_seconds=x", "int"),
    ],
)
def test_a_url_that_makes_no_sense(url, word):
    with pytest.raises(ValueError, match=word):
        open_connection(url).connect()
