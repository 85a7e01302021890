"""What lanes should hold, on real PostgreSQL and RabbitMQ: signed events, and without a reader the newest are kept."""

from __future__ import annotations

import time
import uuid
from urllib.parse import urlsplit, urlunsplit

import pytest

from broker.bus.inbox import Inbox
from broker.bus.provisioning import QueueState, apply_bus
from broker.bus.publisher import Publisher
from broker.bus.topology import open_connection
from broker.clock import utc_now_us
from broker.database import plans, tables
from broker.database.drivers.postgres.database import open_postgres
from broker.database.plans import LanePlan
from broker.domain.desired import DESIRED_MESSAGES_MAX, DESIRED_QUEUE
from broker.sdk.desired import DesiredEvents
from broker.signing import KeyRing, KeyRole, PublicKey
from broker.stages.announcer import Announcer
from tests.unit.builders import a_signer
from tests.upgraded import upgrade_postgres

_SETTLE_SECONDS = 2.0
"""Of a quorum queue that was just made RabbitMQ loses the leader otherwise; see test_rabbit_bus.py."""


@pytest.fixture
def vhost(private_rabbit):
    private_rabbit.control("add_vhost", "desired")
    private_rabbit.control("set_permissions", "-p", "desired", "guest", ".*", ".*", ".*")
    yield f"{private_rabbit.url.rstrip('/')}/desired"
    private_rabbit.control("delete_vhost", "desired")


@pytest.fixture
def redis_corner(redis_url):
    prefix = f"broker-test-{uuid.uuid4().hex}-"
    url = f"{urlunsplit(urlsplit(redis_url)._replace(query=''))}?global_keyprefix={prefix}"
    yield url
    with open_connection(url) as connection:
        client = connection.default_channel.client
        for key in client.scan_iter(f"{prefix}*"):
            client.delete(key)


@pytest.fixture
def database(postgres_url):
    upgrade_postgres(postgres_url)
    opened = open_postgres(postgres_url)
    yield opened
    opened.close()


def _plan(database, generation, **desired):
    words = [LanePlan(lane=lane, desired=n, usable=1, ready=1, speeds={}) for lane, n in desired.items()]
    database.write(
        lambda connection: plans.write_lane_plans(connection, words, generation, utc_now_us()), durable=False
    )


def _waiting(database):
    return database.read(lambda connection: connection.execute(tables.desired_change.select()).all())


def test_a_change_comes_as_a_signed_event_and_of_a_bus_that_was_away_the_newest(database, private_rabbit, vhost):
    signer, key = a_signer("broker")
    ring = KeyRing({"broker": PublicKey(KeyRole.BROKER, "broker", key.public_key())})
    publisher = Publisher(vhost)
    announcer = Announcer(database=database, publisher=publisher, signer=signer, clock=utc_now_us)
    assert {line.name: line.state for line in apply_bus({vhost: [DESIRED_QUEUE]}).lines} == {
        DESIRED_QUEUE: QueueState.CREATED
    }
    events = DesiredEvents(vhost, ring)
    try:
        _plan(database, 1, tpu=2, gpu=1)
        assert announcer.step()
        assert {one.lane: (one.desired, one.generation) for one in events.receive(10)} == {"tpu": (2, 1), "gpu": (1, 1)}
        time.sleep(_SETTLE_SECONDS)
        private_rabbit.control("stop_app")
        for count in range(3, 8):
            _plan(database, count, tpu=count)
            announcer.step()
        assert [(row.lane, row.desired) for row in _waiting(database)] == [("tpu", 7)]
        private_rabbit.control("start_app")
        announcer._rests_until = 0.0
        assert announcer.step()
        assert {one.lane: one.desired for one in events.receive(30)} == {"tpu": 7}
        assert _waiting(database) == []
    finally:
        events.close()
        publisher.close()


@pytest.mark.parametrize("bus", ["vhost", "redis_corner"])
def test_without_a_reader_the_newest_are_kept_and_nothing_is_refused(bus, request):
    url = request.getfixturevalue(bus)
    publisher = Publisher(url)
    many = [b"%d" % number for number in range(DESIRED_MESSAGES_MAX + 250)]
    for first in range(0, len(many), 250):
        publisher.publish_events(DESIRED_QUEUE, many[first : first + 250])
    publisher.close()
    inbox = Inbox(url, [DESIRED_QUEUE], 2_000)
    found = []
    while deliveries := inbox.receive(2_000, 2.0):
        found += [delivery.envelope for delivery in deliveries]
        inbox.acknowledge(deliveries)
    inbox.close()
    assert found == many[-DESIRED_MESSAGES_MAX:]
