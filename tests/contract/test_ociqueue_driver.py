"""What the OCI Queue driver promises beyond the contract: errors, batches, identity."""

from __future__ import annotations

import base64
import subprocess
import sys
import threading
import time

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from broker.bus.driver import BusUnavailable, MessageRefused, MessageTooLarge, PublishError, QueueMissing
from broker.bus.drivers.ociqueue.address import address_of
from broker.bus.drivers.ociqueue.driver import OciQueueDriver
from broker.bus.topology import open_connection
from infra.emulators.ociqueue import COMPARTMENT, Action, Emulator, Fault, Limits, Options, Point, public_key

KEY_ID = "ocid1.tenancy.oc1..t/ocid1.user.oc1..u/" + ":".join(["ab"] * 16)


@pytest.fixture(scope="module")
def server():
    with Emulator() as running:
        yield running


@pytest.fixture
def queue(server, request):
    name = request.node.name[:100].replace("[", "-").replace("]", "")  # faults take it for a pattern
    made = [server.create_queue(name), server.create_queue(f"{name}-dead")]
    yield name
    server.clear_faults()
    for ocid in made:
        server.delete_queue(ocid)


def driver_of(server, **options):
    return OciQueueDriver(address_of(f"laneoci://127.0.0.1:{server.port}/{COMPARTMENT}?emulator=true", options))


@pytest.fixture
def driver(server):
    opened = driver_of(server, lease_seconds=1)
    yield opened
    opened.close()


def held(server, name):
    return server.state()["queues"][name]


# Leases.


def test_a_lease_that_is_not_renewed_ends_and_the_attempt_is_counted(driver, queue):
    driver.publish(queue, [b"m"])
    (first,) = driver.receive(queue, 5, 5)
    time.sleep(1.05)
    (second,) = driver.receive(queue, 5, 5)
    assert (first.attempts, second.attempts) == (1, 2)
    assert list(driver.ack(queue, [first.handle])) == [first.handle]
    assert list(driver.extend(queue, [first.handle], 5)) == [first.handle]
    assert driver.ack(queue, [second.handle]) == {}
    assert driver.size(queue) == 0


def test_a_lease_is_held_for_hours_by_renewing_it():
    with Emulator(Options(manual_clock=True)) as still:
        for name in ("long", "long-dead"):
            still.create_queue(name)
        driver = driver_of(still, lease_seconds=60)
        driver.publish("long", [b"m"])
        (lease,) = driver.receive("long", 1, 0)
        for _ in range(360):
            still.advance(40)
            assert driver.extend("long", [lease.handle], 60) == {}
        assert driver.receive("long", 1, 0) == []
        assert driver.ack("long", [lease.handle]) == {}  # four hours later
        driver.close()


def test_a_message_given_back_with_a_delay_waits(driver, queue):
    driver.publish(queue, [b"m"])
    (lease,) = driver.receive(queue, 1, 5)
    driver.release(queue, [lease.handle], 0.3)  # the service knows whole seconds
    assert driver.receive(queue, 1, 0.3) == []
    assert len(driver.receive(queue, 1, 3)) == 1


def test_wake_ends_a_receive(driver, queue):
    began = time.monotonic()
    threading.Timer(0.1, driver.wake).start()
    assert driver.receive(queue, 1, 10) == []
    assert time.monotonic() - began < 2.5


def test_a_closed_driver_gives_back_and_refuses(server, queue):
    driver = driver_of(server)
    driver.publish(queue, [b"1"])
    driver.receive(queue, 1, 5)
    driver.close()
    driver.close()
    assert (held(server, queue)["visible"], held(server, queue)["in_flight"]) == (1, 0)
    with pytest.raises(BusUnavailable, match="closed"):
        driver.publish(queue, [b"2"])


# Batches.


def test_more_than_fits_a_request_goes_in_several(driver, queue):
    bodies = [bytes([number]) * 90_000 for number in range(25)]
    driver.publish(queue, bodies)
    got = []
    while len(got) < 25:
        leases = driver.receive(queue, 100, 5)
        got += [lease.data for lease in leases]
        driver.ack(queue, [lease.handle for lease in leases])
    assert sorted(got) == bodies


def test_a_hundred_are_settled_in_batches(driver, queue):
    driver.publish(queue, [b"%d" % number for number in range(100)])
    leases = [lease for _ in range(5) for lease in driver.receive(queue, 20, 5)]
    handles = [lease.handle for lease in leases]
    assert driver.extend(queue, handles, 30) == {}
    assert driver.ack(queue, handles) == {}
    assert len({lease.data for lease in leases}) == 100


def test_a_message_that_is_too_large_is_named_and_the_others_are_sent(driver, queue):
    with pytest.raises(PublishError) as caught:
        driver.publish(queue, [b"1", b"x" * 110_000, b"2"])
    assert list(caught.value.errors) == [1]
    assert isinstance(caught.value.errors[1], MessageRefused)
    assert driver.size(queue) == 2


def test_a_message_larger_than_a_request_is_named(driver, queue):
    with pytest.raises(PublishError) as caught:
        driver.publish(queue, [b"1", b"x" * 700_000])
    assert isinstance(caught.value.errors[1], MessageTooLarge)


def test_a_full_queue_pushes_back():
    with Emulator(Options(limits=Limits(queue_bytes=200_000))) as small:
        small.create_queue("small")
        driver = driver_of(small)
        with pytest.raises(PublishError, match="full") as caught:
            driver.publish("small", [b"x" * 90_000] * 4)
        assert all(isinstance(error, MessageRefused) for error in caught.value.errors.values())
        driver.close()


# Errors.


def test_a_throttled_call_waits_as_long_as_the_service_asks(driver, server, queue):
    server.add_fault(Fault(Point.PUT, Action.REFUSE, queue, retry_after_seconds=0.4))
    began = time.monotonic()
    driver.publish(queue, [b"1"])
    assert time.monotonic() - began >= 0.4
    assert driver.size(queue) == 1


def test_what_stays_throttled_is_refused_and_not_lost(driver, server, queue):
    server.add_fault(Fault(Point.PUT, Action.REFUSE, queue, times=3))
    with pytest.raises(PublishError, match="fewer requests") as caught:
        driver.publish(queue, [b"1", b"2"])
    assert [type(error) for error in caught.value.errors.values()] == [MessageRefused, MessageRefused]
    server.add_fault(Fault(Point.GET, Action.REFUSE, queue, retry_after_seconds=60))
    with pytest.raises(BusUnavailable, match="429 TooManyRequests"):
        driver.receive(queue, 1, 1)


@pytest.mark.parametrize("point", [Point.PUT, Point.GET, Point.UPDATE, Point.DELETE, Point.STATS])
@pytest.mark.parametrize("action", [Action.REFUSE, Action.DROP_BEFORE, Action.DROP_AFTER])
def test_a_failing_service_is_unavailable_and_used_again(driver, server, queue, point, action):
    driver.publish(queue, [b"1"])
    (lease,) = driver.receive(queue, 1, 5)
    calls = {
        Point.PUT: lambda: driver.publish(queue, [b"2"]),
        Point.GET: lambda: driver.receive(queue, 1, 0),
        Point.UPDATE: lambda: driver.extend(queue, [lease.handle], 5),
        Point.DELETE: lambda: driver.ack(queue, [lease.handle]),
        Point.STATS: lambda: driver.size(queue),
    }
    server.add_fault(Fault(point, action, queue, 500, "InternalServerError", "out of order"))
    with pytest.raises(BusUnavailable) as caught:
        calls[point]()
    assert queue in str(caught.value)
    calls[point]()


def test_an_answer_that_never_comes_is_not_waited_for(server, queue):
    driver = driver_of(server, answer_seconds=0.5)
    server.add_fault(Fault(Point.PUT, Action.LOSE, queue))
    began = time.monotonic()
    with pytest.raises(BusUnavailable, match="timed out"):
        driver.publish(queue, [b"1"])
    assert time.monotonic() - began < 3
    assert driver.size(queue) == 1  # it was carried out: what is sent again comes twice, and receivers know it
    driver.close()


def test_a_settlement_whose_answer_is_lost_is_carried_out_once(driver, server, queue):
    driver.publish(queue, [b"1"])
    (lease,) = driver.receive(queue, 1, 5)
    server.add_fault(Fault(Point.DELETE, Action.DROP_AFTER, queue))
    with pytest.raises(BusUnavailable):
        driver.ack(queue, [lease.handle])
    assert list(driver.ack(queue, [lease.handle])) == [lease.handle]  # the second try can only find it gone
    assert held(server, queue)["visible"] == held(server, queue)["in_flight"] == 0


def test_entries_that_the_service_failed_at_are_tried_again_alone(driver, server, queue):
    driver.publish(queue, [b"%d" % number for number in range(10)])
    handles = [lease.handle for lease in driver.receive(queue, 20, 5)]
    server.add_fault(Fault(Point.DELETE, Action.SPOIL, queue, 503, times=2))
    assert driver.ack(queue, handles) == {}
    assert held(server, queue)["in_flight"] == 0


def test_entries_that_go_on_failing_are_unavailable(driver, server, queue):
    driver.publish(queue, [b"1"])
    handles = [lease.handle for lease in driver.receive(queue, 1, 5)]
    server.add_fault(Fault(Point.UPDATE, Action.SPOIL, queue, 503, times=3))
    with pytest.raises(BusUnavailable, match="failed at 1 of 1"):
        driver.extend(queue, handles, 5)


def test_idle_connections_that_were_cut_are_opened_again(driver, server, queue):
    driver.publish(queue, [b"1"])
    server.drop_connections()
    time.sleep(0.05)
    driver.publish(queue, [b"2"])
    assert driver.size(queue) == 2


def test_a_missing_queue_is_named_with_the_way_to_make_it(driver):
    for call in (
        lambda: driver.receive("nowhere", 1, 0),
        lambda: driver.publish("nowhere", [b"x"]),
        lambda: driver.ensure("nowhere"),
        lambda: driver.size("nowhere"),
    ):
        with pytest.raises(QueueMissing, match=r"queue 'nowhere.*doesn't exist.*`broker bus apply` makes it"):
            call()
    driver.delete("nowhere")


def test_a_queue_made_anew_is_found(driver, server):
    first = server.create_queue("anew")
    driver.publish("anew", [b"1"])
    server.delete_queue(first)
    server.create_queue("anew")
    with pytest.raises(QueueMissing):
        driver.publish("anew", [b"2"])
    driver.publish("anew", [b"2"])
    assert driver.size("anew") == 1
    driver.delete("anew")


# Queues and dead letters.


def test_ensuring_makes_a_queue_only_where_that_was_asked_for(server):
    maker = driver_of(server, create=True, lease_seconds=30)
    maker.ensure("made")
    maker.ensure("made")
    assert {"made", "made-dead"} <= server.state()["queues"].keys()
    maker.publish("made", [b"1", b"2"])
    assert maker.purge("made") == 2
    assert maker.size("made") == 0
    for name in ("made", "made-dead"):
        maker.delete(name)
    maker.close()


def test_of_two_queues_of_one_name_everybody_uses_the_older(driver, server):
    older = server.create_queue("twice")
    time.sleep(0.01)
    younger = server.create_queue("twice")
    driver.publish("twice", [b"1"])
    counts = server.call(lambda service: service.queues.find(older).messages.counts(service.clock.now_ms()))
    assert counts.visible == 1
    for ocid in (older, younger):
        server.delete_queue(ocid)


def test_a_dead_letter_says_why_and_whence(driver, server, queue):
    driver.publish(queue, [b"m"])
    driver.dead_letter(queue, driver.receive(queue, 1, 5), "undecodable: DecodeError")
    (ocid,) = [held(server, f"{queue}-dead")["id"]]
    (kept,) = server.call(lambda service: service.queues.find(ocid).messages.held())
    assert base64.b64decode(kept.content) == b"m"
    assert kept.metadata["customProperties"] == {
        "queue": queue,
        "reason": "undecodable: DecodeError",
        "attempts": "1",
    }
    assert held(server, queue)["in_flight"] == 0


def test_one_queue_may_take_all_dead_letters(server, queue):
    server.create_queue("graves")
    driver = driver_of(server, dead_letters="graves")
    driver.ensure(queue)
    driver.ensure("graves")
    driver.publish(queue, [b"m"])
    driver.dead_letter(queue, driver.receive(queue, 1, 5), "why")
    assert driver.size("graves") == 1
    driver.delete("graves")
    driver.close()


# Identity.


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    """A key as Oracle's console makes it, and a configuration that names it."""
    folder = tmp_path_factory.mktemp("oci")
    private = rsa.generate_private_key(65_537, 2_048)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (folder / "key.pem").write_bytes(pem)
    tenancy, user, fingerprint = KEY_ID.split("/")
    (folder / "config").write_text(
        f"[LANES]\ntenancy={tenancy}\nuser={user}\nfingerprint={fingerprint}\nkey_file={folder / 'key.pem'}\n"
        "region=us-ashburn-1\n"
    )
    return folder, public_key(public.decode())


def test_a_profile_of_the_configuration_signs_requests(key):
    folder, public = key
    with Emulator(Options(keys={KEY_ID: public})) as strict:
        strict.create_queue("signed")
        query = f"profile=LANES&config_file={folder / 'config'}&endpoint={strict.endpoint}"
        driver = OciQueueDriver(address_of(f"laneoci://eu-frankfurt-1/{COMPARTMENT}?{query}", {}))
        driver.publish("signed", [b"1"])
        assert [lease.data for lease in driver.receive("signed", 1, 5)] == [b"1"]
        driver.close()
        stranger = driver_of(strict)
        with pytest.raises(BusUnavailable, match="doesn't take our key"):
            stranger.publish("signed", [b"2"])
        stranger.close()


def test_a_profile_whose_key_is_gone_says_so(key, tmp_path):
    (tmp_path / "config").write_text((key[0] / "config").read_text().replace("key.pem", "gone.pem"))
    with pytest.raises(ValueError, match=r"profile 'LANES' of .* can't be used: .*gone.pem"):
        open_connection(f"laneoci://r/c?profile=LANES&config_file={tmp_path / 'config'}").connect()


def test_a_machine_without_identity_says_so_at_once(monkeypatch):
    monkeypatch.setenv("OCI_METADATA_BASE_URL", "http://127.0.0.1:1/opc/v2")
    began = time.monotonic()
    with pytest.raises(BusUnavailable, match="no OCI identity; name a key with"):
        open_connection("laneoci://eu-frankfurt-1/ocid1.compartment.oc1..x").connect()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("laneoci://eu-frankfurt-1", "a region and a compartment"),
        ("laneoci:///ocid1", "a region and a compartment"),
        ("laneoci://r/c?colour=red", "colour"),
        ("laneoci://r/c?lease_seconds=0", "lease_seconds"),
        ("laneoci://r/c?lease_seconds=x", "lease_seconds"),
        ("laneoci://r/c?profile=X&config_file=/nowhere", "profile 'X' of /nowhere can't be used"),
    ],
)
def test_a_url_that_makes_no_sense(url, words):
    with pytest.raises(ValueError, match=words):
        open_connection(url).connect()


def test_without_the_sdk_one_sentence_says_what_to_install():
    code = (
        "import sys; sys.modules['oci'] = None\n"
        "from broker.bus.topology import open_connection\n"
        "try: open_connection('laneoci://r/c').connect()\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == [
        "a laneoci URL needs Oracle's SDK, which is not installed: pip install 'inference-broker[oci]'"
    ]
