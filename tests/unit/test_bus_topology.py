from __future__ import annotations

import pytest

from broker.bus.topology import dead_letter_queue, lane_queue, open_connection, plain_url, transport_options_for

RABBIT = "amqp://guest:p%40ss@host:5672/vhost"


@pytest.mark.parametrize(
    ("url", "transport"),
    [
        (RABBIT, "AmqpTransport"),
        (f"{RABBIT}?queue_type=classic", "AmqpTransport"),
        ("amqps://host//", "AmqpsTransport"),
        ("redis://host:6379/3?visibility_timeout=9", "RedisTransport"),
        ("rediss://host:6379/3", "RedissTransport"),
        ("lanemem://name?lease_seconds=3", "MemoryLaneTransport"),
        ("memory://", "Transport"),  # any other kombu URL keeps kombu's own
    ],
)
def test_each_scheme_has_its_transport(url, transport):
    assert type(open_connection(url).transport).__name__ == transport


def test_kombu_keeps_its_own_transports_for_others():
    import kombu

    open_connection(RABBIT)
    assert type(kombu.Connection(RABBIT).transport).__module__ == "kombu.transport.pyamqp"


def test_options_in_a_url_are_ours_and_the_rest_is_kombus():
    url = f"{RABBIT}?queue_type=classic&max_messages=7&ssl_cert_reqs=CERT_REQUIRED"
    connection = open_connection(url, {"max_messages": 9})
    assert (connection.userid, connection.password, connection.virtual_host) == ("guest", "p@ss", "vhost")
    assert connection.transport_options["queue_type"] == "classic"
    assert connection.transport_options["max_messages"] == 9  # what is given in code stands above the URL
    assert plain_url(url) == f"{RABBIT}?ssl_cert_reqs=CERT_REQUIRED"
    assert plain_url("lanemem://name?lease_seconds=3") == "lanemem://name?lease_seconds=3"
    assert plain_url("amqp://host//") == "amqp://host//"


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("amqp://host//?que_type=classic", "a amqp URL has no option 'que_type'; it has queue_type,"),
        ("amqp://host//?max_messages=many", "max_messages is 'many' in a amqp URL; it must be a number"),
        ("amqp://host//?queue_type=stream", "queue_type is 'stream'; RabbitMQ has quorum and classic"),
        ("redis://host/0?visibility_timeout=long", "visibility_timeout is 'long'"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(url, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}".replace("?", r"\?")):
        open_connection(url)


def test_a_rabbit_queue_is_bounded_and_knows_where_its_dead_go():
    queue = lane_queue(f"{RABBIT}?max_messages=7", "q", {"delivery_limit": 3})
    assert queue.queue_arguments == {
        "x-queue-type": "quorum",
        "x-max-length": 7,
        "x-overflow": "reject-publish",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "q-dead",
        "x-delivery-limit": 3,
    }
    dead = dead_letter_queue(queue)
    assert dead.name == "q-dead"
    assert dead.queue_arguments["x-overflow"] == "drop-head"  # the newest tell most
    assert "x-delivery-limit" not in lane_queue(f"{RABBIT}?queue_type=classic", "q").queue_arguments


def test_other_queues_are_plain():
    queue = lane_queue("redis://host/0", "q")
    assert queue.queue_arguments is None
    assert dead_letter_queue(queue) is None


def test_redis_looks_for_abandoned_messages_often_enough_to_renew_its_own():
    options = transport_options_for("redis://host/0?visibility_timeout=8", None)
    assert options["unacked_restore_interval"] == 2.0
    assert options["unacked_restore_throttle"] == 1


@pytest.mark.parametrize("scheme", ["amqps", "rediss"])
def test_encrypted_urls_check_who_answers(scheme):
    import ssl

    transport = open_connection(f"{scheme}://host/0").transport
    (required,) = [value for name, value in transport.client.ssl.items() if name.endswith("cert_reqs")]
    assert required == ssl.CERT_REQUIRED
