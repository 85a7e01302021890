"""The claim check, over a bus of this process, with a shared folder and with what speaks S3."""

from __future__ import annotations

import datetime as dt
import json
import time

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from broker.bootstrap.buses import fitted, in_one_process
from broker.bus.claim_check import ClaimCheck, SharedPlace, envelope_bytes_max, parked_path, sweep
from broker.bus.driver import BusUnavailable, MessageTooLarge, PublishError
from broker.bus.envelope import EnvelopeError, Kind, seal
from broker.bus.inbox import Inbox
from broker.bus.payload_store import PayloadStore
from broker.bus.publisher import Publisher
from broker.bus.signed_place import SignedPlace
from broker.domain.events import JobsRan
from broker.domain.parked import ParkAnswer, Ticket
from broker.domain.shard import RunShard, ShardJob
from broker.intake.batch_lines import LINE_BYTES_MAX
from broker.rules.sharding import fits_message
from broker.signing import KeyRing, KeyRole, PublicKey, Signer
from tests.services.small_s3 import SmallS3
from tests.unit.builders import a_lane

LANE, SHARD = "azure", bytes(range(16))
URL = "lanemem://claims"
OPTIONS = {"max_message_bytes": 50_000}
HOUR_US = 3_600 * 1_000_000


@pytest.fixture
def queue(request):
    return request.node.name


def now_us():
    return time.time_ns() // 1_000


def signer_of(role, owner):
    signer = Signer(f"{owner}-key", Ed25519PrivateKey.generate())
    return signer, PublicKey(role, owner, Ed25519PublicKey.from_public_bytes(signer.public_bytes))


BROKER, BROKER_KEY = signer_of(KeyRole.BROKER, "broker")
WORKER, WORKER_KEY = signer_of(KeyRole.LANE, LANE)
OTHER, OTHER_KEY = signer_of(KeyRole.LANE, "other")
RING = KeyRing({BROKER.key_id: BROKER_KEY, WORKER.key_id: WORKER_KEY, OTHER.key_id: OTHER_KEY})


def shard(size, valid_us=HOUR_US):
    order = RunShard(SHARD, LANE, "t", "/v1/chat/completions", "m", (ShardJob(b"j" * 16, b"x" * size, b"s" * 16),))
    return seal(BROKER, Kind.SHARD, LANE, order, now_us=now_us(), valid_us=valid_us)


def event(signer=WORKER, lane=LANE, shard_id=SHARD):
    ran = JobsRan(shard_id, lane, "w" * 300_000, 0, ())  # of any size: nothing here looks inside
    return seal(signer, Kind.EVENT, "broker", ran, now_us=now_us(), valid_us=HOUR_US)


@pytest.fixture
def s3(monkeypatch):
    with SmallS3() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path):
    if request.param == "folder":
        return PayloadStore(f"file://{tmp_path}/payloads")
    request.getfixturevalue("s3")
    return PayloadStore("s3://bucket/some/where")


@pytest.fixture
def broker_side(store):
    return ClaimCheck.of_broker(SharedPlace(store), BROKER, RING, now_us)


@pytest.fixture
def worker_side(store):
    return ClaimCheck.of_worker(SharedPlace(store), {LANE: WORKER, "other": OTHER}, RING, now_us)


@pytest.fixture
def unprivileged(s3):
    """A worker that has only what the broker signs for it."""
    store = PayloadStore("s3://bucket/some/where")

    def ask_upload(lane, shard_id, digest, size):
        path = parked_path(Kind.EVENT_TICKET, lane, shard_id, digest)
        return ParkAnswer(path, store.sign("PUT", path, 60))

    return ClaimCheck.of_worker(SignedPlace(ask_upload), {LANE: WORKER}, RING, now_us)


def stored(store):
    now = dt.datetime.now(dt.UTC)
    return [each.path for folder in ("shards", "events") for each in store.stored(folder, now)]


def test_a_shard_that_the_bus_cannot_carry_goes_by_reference(store, broker_side, worker_side, queue):
    publisher = Publisher(URL, OPTIONS, broker_side)
    inbox = Inbox(URL, [queue], 10, OPTIONS, worker_side)
    small, large = shard(10), shard(1_000_000)
    publisher.publish_events(queue, [small, large, small])
    assert [each.envelope for each in inbox.receive(3, 5)] == [small, large, small]
    assert len(stored(store)) == 1  # what fits never touches the store
    publisher.close()
    inbox.close()


def test_what_is_larger_than_shards_are_cut_to_goes_by_reference_though_the_bus_may_carry_it(
    store, broker_side, worker_side, queue
):
    publisher = Publisher(URL, {"max_message_bytes": 10_000_000}, broker_side, direct_bytes_max=100_000)
    inbox = Inbox(URL, [queue], 10, OPTIONS, worker_side)
    small, large = shard(10), shard(5_000_000)
    publisher.publish_events(queue, [small, large])
    assert [each.envelope for each in inbox.receive(2, 5)] == [small, large]
    assert len(stored(store)) == 1
    publisher.close()
    inbox.close()


@pytest.mark.parametrize(
    ("bus_url", "message_bytes_max"),
    [("amqp://h//", 4_000_000), ("redis://h/0", 4_000_000), ("laneasb://k:s@h", 180_000)],
)
def test_with_a_store_every_lane_carries_the_largest_line(bus_url, message_bytes_max):
    lanes = [a_lane("one", bus_url=bus_url), a_lane("two", bus_url=bus_url, message_bytes_max=100_000)]
    by_reference = fitted(lanes, by_reference=True)
    assert [lane.message_bytes_max for lane in by_reference] == [message_bytes_max, 100_000]
    assert all(fits_message(lane, LINE_BYTES_MAX) for lane in (*by_reference, *in_one_process(lanes)))
    without = fitted(lanes, by_reference=False)
    assert [fits_message(lane, size) for lane, size in zip(without, (message_bytes_max, 100_000), strict=True)] == [
        False,
        False,
    ]


def test_without_a_store_the_message_is_named(queue):
    publisher = Publisher(URL, OPTIONS)
    with pytest.raises(PublishError) as caught:
        publisher.publish_events(queue, [shard(10), shard(1_000_000)])
    assert isinstance(caught.value.errors[1], MessageTooLarge)
    publisher.close()


def test_an_event_goes_by_reference_to_the_broker(broker_side, worker_side):
    sealed = event()
    ticket = worker_side.park(sealed)
    assert len(ticket) < 1_000
    assert broker_side.redeem(ticket) == sealed


def test_a_worker_without_credentials_uses_what_the_broker_signed(s3, unprivileged):
    store = PayloadStore("s3://bucket/some/where")
    broker = ClaimCheck.of_broker(SharedPlace(store), BROKER, RING, now_us)
    large, told = shard(500_000), event()
    s3.asked.clear()
    assert unprivileged.redeem(broker.park(large)) == large
    assert broker.redeem(unprivileged.park(told)) == told
    assert [(method, by_url) for method, _, by_url in s3.asked] == [
        ("PUT", False),
        ("GET", True),
        ("PUT", True),
        ("GET", False),
    ]


def test_a_url_is_good_for_one_body_and_a_while(s3, unprivileged):
    store = PayloadStore("s3://bucket/some/where")
    store.put("shards/x", b"body")
    signed = store.sign("GET", "shards/x", 1)
    other = Ticket("shards/y", 4, b"", signed.replace("/x?", "/y?"))
    with pytest.raises(Exception, match="403"):
        unprivileged._place.fetch(other)
    assert unprivileged._place.fetch(Ticket("shards/x", 4, b"", signed)) == b"body"
    time.sleep(2.1)
    with pytest.raises(Exception, match="403"):
        unprivileged._place.fetch(Ticket("shards/x", 4, b"", signed))


def test_an_altered_body_is_refused(store, broker_side, worker_side):
    ticket = broker_side.park(shard(100_000))
    (path,) = stored(store)
    original = store.get(path, 1_000_000)
    store.put(path, original[:-1] + bytes([original[-1] ^ 1]))
    with pytest.raises(EnvelopeError, match="not what its ticket was signed for"):
        worker_side.redeem(ticket)
    store.put(path, original + b"more")
    with pytest.raises(EnvelopeError, match="were announced"):
        worker_side.redeem(ticket)
    store.delete([path, path])
    with pytest.raises(EnvelopeError, match="is not in the store"):
        worker_side.redeem(ticket)


def test_a_ticket_is_believed_by_its_signature_alone(broker_side, worker_side):
    ticket = broker_side.park(shard(100_000))
    with pytest.raises(EnvelopeError, match="does not match"):
        worker_side.redeem(ticket[:-1] + bytes([ticket[-1] ^ 1]))
    with pytest.raises(EnvelopeError):
        broker_side.redeem(ticket)  # a shard's, where an event's belongs
    forged = seal(
        WORKER, Kind.SHARD_TICKET, LANE, Ticket(f"shards/{LANE}/x", 9, b""), now_us=now_us(), valid_us=HOUR_US
    )
    with pytest.raises(EnvelopeError, match="by a lane key"):
        worker_side.redeem(b"\xc1" + forged)


@pytest.mark.parametrize("ticket", [Ticket("events/azure/x", 9, b""), Ticket("/etc/passwd", 9, b"")])
def test_a_lane_redeems_nothing_of_another(broker_side, ticket):
    sealed = seal(OTHER, Kind.EVENT_TICKET, "broker", ticket, now_us=now_us(), valid_us=HOUR_US)
    with pytest.raises(EnvelopeError, match="the ticket is for"):
        broker_side.redeem(b"\xc1" + sealed)


def test_a_ticket_ends_with_its_shard(broker_side, worker_side):
    ticket = broker_side.park(shard(100_000, valid_us=1))
    time.sleep(1.1)
    with pytest.raises(EnvelopeError, match="expired"):
        worker_side.redeem(ticket)


def test_a_store_that_is_away_loses_nothing(s3, unprivileged, queue):
    store = PayloadStore("s3://bucket/some/where")
    broker = ClaimCheck.of_broker(SharedPlace(store), BROKER, RING, now_us)
    publisher, inbox = Publisher(URL, OPTIONS, broker), Inbox(URL, [queue], 10, OPTIONS, unprivileged)
    large = shard(500_000)
    publisher.publish_events(queue, [large])
    s3.failures = 10
    began = time.monotonic()
    received = []
    while not received:
        assert time.monotonic() - began < 30
        received = inbox.receive(1, 1)
    assert [each.envelope for each in received] == [large]
    assert s3.failures == 0
    publisher.close()
    inbox.close()


def test_a_store_that_is_not_there_is_a_bus_that_is_not_there(monkeypatch, queue):
    with SmallS3() as gone:
        environment = gone.environment()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("broker.bus.payload_store._RETRIES", 0)
    broker = ClaimCheck.of_broker(SharedPlace(PayloadStore("s3://bucket")), BROKER, RING, now_us)
    publisher = Publisher(URL, OPTIONS, broker)
    with pytest.raises(BusUnavailable, match="the payload was not stored"):
        publisher.publish_events(queue, [shard(500_000)])
    publisher.close()


def test_bodies_go_when_their_shard_has_ended_or_they_are_old(store, broker_side, worker_side):
    broker_side.park(shard(100_000))
    worker_side.park(event())
    other = worker_side.park(event(shard_id=b"o" * 16))
    assert sweep(store, lambda _: set(), kept_seconds=600) == 0  # too young to be asked about
    asked = []

    def ended(shard_ids):
        asked.append(sorted(shard_ids))
        return {SHARD}

    assert sweep(store, ended, kept_seconds=-5) == 2
    assert asked == [[SHARD, b"o" * 16]]
    assert broker_side.redeem(other)
    assert sweep(store, lambda _: set(), kept_seconds=-5, kept_seconds_max=-5) == 1
    assert stored(store) == []


def test_google_and_azure_sign_without_being_asked(monkeypatch, tmp_path):
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    account = {"type": "service_account", "client_email": "a@p", "private_key_id": "k", "private_key": key.decode()}
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "account.json"))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    for url, begins, word in (
        ("gs://bucket/pre", "https://storage.googleapis.com/bucket/pre/shards/x?", "X-Goog-Signature="),
        ("az://container/pre", "https://account.blob.core.windows.net/container/pre/shards/x?", "sig="),
    ):
        signed = PayloadStore(url).sign("PUT", "shards/x", 60)
        assert signed.startswith(begins)
        assert word in signed


@pytest.mark.parametrize(
    ("url", "options", "limit"),
    [
        ("laneasb://n:k@h/", {}, 180_000),
        ("laneoci://h/", {}, 100_000),
        ("lanepubsub://p/", {}, 8_996_000),
        ("laneasb://n:k@h/?max_message_bytes=100000000", {}, 99_996_000),
        ("laneasb://n:k@h/?max_message_bytes=100000000", {"max_message_bytes": 50_000}, 46_000),
    ],
)
def test_what_a_bus_carries(url, options, limit):
    assert envelope_bytes_max(url, options) == limit


def test_a_bus_without_a_known_limit_is_never_too_small():
    assert envelope_bytes_max("amqp://h//") > 1 << 40


@pytest.mark.parametrize(
    ("url", "word"), [("ftp://h/x", "'ftp'"), ("/shared", "''"), ("s3://", "can't be used"), ("az://c", "Account")]
)
def test_a_store_that_makes_no_sense(url, word):
    with pytest.raises(ValueError, match=word):
        PayloadStore(url)
