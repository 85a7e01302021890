from __future__ import annotations

import threading
import uuid

import msgspec
import pytest

from broker.bus.apps import TASK_NAME, producer_app
from broker.bus.driver import BusUnavailable, PublishError
from broker.bus.drivers.memory import MemoryDriver, MemoryOptions
from broker.bus.publisher import Publisher
from broker.bus.serializer import CONTENT_TYPE

SECRET = b"the prompt"


@pytest.fixture
def name():
    return f"publisher-{uuid.uuid4().hex}"


@pytest.fixture
def publisher(name):
    under_test = Publisher(f"lanemem://{name}", {"max_messages": 5_000, "max_message_bytes": 10_000})
    yield under_test
    under_test.close()


def _sent(name, queue):
    driver = MemoryDriver(name, MemoryOptions())
    return [msgspec.msgpack.decode(lease.data) for lease in driver.receive(queue, 10_000, 0)]


def test_a_shard_is_a_celery_task_and_its_headers_hold_no_payload(publisher, name):
    publisher.publish_shards("q", [SECRET, SECRET])
    messages = _sent(name, "q")
    assert [message[0] for message in messages] == [SECRET, SECRET]
    for body, content_type, encoding, headers, properties in messages:
        assert (body, content_type, encoding) == (SECRET, CONTENT_TYPE, "binary")
        assert headers["task"] == TASK_NAME
        assert (headers["argsrepr"], headers["kwargsrepr"]) == ("-", "-")
        assert headers["id"] == properties["correlation_id"]
        assert "the prompt" not in repr((headers, properties))
    assert len({message[3]["id"] for message in messages}) == 2


def test_an_event_is_a_plain_message(publisher, name):
    publisher.publish_events("q", [SECRET])
    ((body, content_type, _, headers, _),) = _sent(name, "q")
    assert (body, content_type, headers) == (SECRET, CONTENT_TYPE, {})


def test_what_was_refused_is_named_and_the_rest_is_there(publisher, name):
    with pytest.raises(PublishError) as caught:
        publisher.publish_events("q", [b"a", b"x" * 20_000, b"b"])
    assert list(caught.value.errors) == [1]
    assert [message[0] for message in _sent(name, "q")] == [b"a", b"b"]


def test_a_full_queue_pushes_back_and_the_next_call_works(publisher, name):
    with pytest.raises(PublishError) as caught:
        publisher.publish_events("q", [b"m"] * 5_001)
    assert list(caught.value.errors) == [5_000]
    _sent(name, "q")
    publisher.publish_events("other", [b"m"])


def test_a_call_that_makes_no_sense_sends_nothing(publisher, name):
    with pytest.raises(Exception, match="never empty"):
        publisher.publish_events("q", [b"good", b""])
    publisher.publish_events("q", [b"later"])
    assert [message[0] for message in _sent(name, "q")] == [b"later"]


def test_it_reconnects_by_itself(publisher, name):
    publisher.publish_events("q", [b"1"])
    publisher._connection.transport.driver.close()
    with pytest.raises(BusUnavailable):
        publisher.publish_events("q", [b"2"])
    publisher.publish_events("q", [b"2"])
    assert [message[0] for message in _sent(name, "q")] == [b"1", b"2"]


def test_threads_take_turns(publisher, name):
    def publish(thread):
        for number in range(25):
            publisher.publish_shards("q", [b"%d.%d" % (thread, number)] * 2)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(_sent(name, "q")) == 200


def test_a_closed_publisher_says_so(publisher):
    publisher.close()
    with pytest.raises(BusUnavailable, match="closed"):
        publisher.publish_shards("q", [b"1"])


def test_a_bus_that_is_down_is_unavailable():
    publisher = Publisher("amqp://127.0.0.1:1//")
    with pytest.raises(BusUnavailable):
        publisher.publish_events("q", [b"1"])
    publisher.close()


def test_a_producer_app_is_nobodys_current_app():
    from celery import current_app

    app = producer_app("lanemem://nobody")
    assert current_app._get_current_object() is not app
    assert app.conf.accept_content == [CONTENT_TYPE]
