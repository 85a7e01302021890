from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.bus.envelope import EnvelopeError, Kind, open_as, open_event, open_shard, seal
from broker.domain.bus_jobs import JobReply, SubmitJobs
from broker.domain.desired import LaneDesired
from broker.domain.errors import ErrorCode
from broker.domain.events import JobsRan, ShardReturned
from broker.domain.parked import AskToPark, ParkAnswer, Ticket
from broker.domain.shard import RenewLease
from broker.signing import KeyRing, KeyRole, PublicKey
from tests.unit.builders import NOW_US, SECOND_US, a_failure, a_job_ran, a_signer, an_order

BROKER, BROKER_KEY = a_signer("b")
LANE, LANE_KEY = a_signer("l")
PRODUCER, PRODUCER_KEY = a_signer("p")
RING = KeyRing(
    {
        "b": PublicKey(KeyRole.BROKER, "broker", BROKER_KEY.public_key()),
        "l": PublicKey(KeyRole.LANE, "lane-a", LANE_KEY.public_key()),
        "p": PublicKey(KeyRole.PRODUCER, "acme", PRODUCER_KEY.public_key()),
    }
)
EVENT = JobsRan(b"s" * 16, "lane-a", "w1", 3, (a_job_ran(0), a_failure(1)))
ENCODE, DECODE = msgspec.msgpack.encode, msgspec.msgpack.decode


def _seal(signer=LANE, kind=Kind.EVENT, body=EVENT, valid_us=SECOND_US):
    return seal(signer, kind, "broker", body, now_us=NOW_US, valid_us=valid_us)


def test_what_was_sealed_is_opened_with_whose_it_is():
    opened = open_event(RING, _seal(), NOW_US)
    assert (opened.owner, opened.audience, opened.body) == ("lane-a", "broker", EVENT)
    returned = ShardReturned(b"s" * 16, "lane-a", "w1", 4, ErrorCode.PREEMPTED)
    assert open_event(RING, _seal(body=returned), NOW_US).body == returned
    order = an_order(3)
    opened = open_shard(RING, seal(BROKER, Kind.SHARD, "lane-a", order, now_us=NOW_US, valid_us=1), NOW_US)
    assert (opened.owner, opened.audience, opened.body) == ("broker", "lane-a", order)


def test_an_envelope_is_valid_for_its_time():
    sealed = _seal(valid_us=SECOND_US)
    open_event(RING, sealed, NOW_US + SECOND_US)
    open_event(RING, sealed, NOW_US - 3_600 * SECOND_US)  # a clock set back voids nothing that is under way
    with pytest.raises(EnvelopeError, match="expired"):
        open_event(RING, sealed, NOW_US + SECOND_US + 1)


def test_each_role_has_its_kind_of_envelope():
    with pytest.raises(EnvelopeError, match=r"by a (broker|lane) key"):
        open_event(RING, _seal(BROKER), NOW_US)  # the broker's key on a lane's envelope
    with pytest.raises(EnvelopeError, match=r"by a (broker|lane) key"):
        open_shard(RING, _seal(LANE, Kind.SHARD, an_order()), NOW_US)
    with pytest.raises(EnvelopeError, match="where"):
        open_shard(RING, _seal(), NOW_US)
    with pytest.raises(EnvelopeError, match="no worker event"):
        open_event(RING, _seal(body=an_order()), NOW_US)
    with pytest.raises(EnvelopeError, match="no shard"):
        open_shard(RING, _seal(BROKER, Kind.SHARD, EVENT), NOW_US)


def test_unknown_and_forged_keys_are_refused():
    stranger, _ = a_signer("stranger")
    with pytest.raises(EnvelopeError, match="unknown key 'stranger'"):
        open_event(RING, _seal(stranger), NOW_US)
    forger, _ = a_signer("l")
    with pytest.raises(EnvelopeError, match="signature of key l does not match"):
        open_event(RING, _seal(forger), NOW_US)


def test_another_version_is_named():
    content, signature = DECODE(_seal(), type=tuple[bytes, bytes])
    fields = DECODE(content)
    with pytest.raises(EnvelopeError, match="envelope version 1; this program reads 2"):
        open_event(RING, ENCODE((ENCODE([1, *fields[1:]]), signature)), NOW_US)


@pytest.mark.parametrize("place", range(8))
def test_no_field_can_be_changed(place):
    content, signature = DECODE(_seal(), type=tuple[bytes, bytes])
    fields = DECODE(content)
    changes = {int: lambda value: value + 1, str: lambda value: value + "x", bytes: lambda value: value + b"x"}
    fields[place] = changes[type(fields[place])](fields[place])
    with pytest.raises(EnvelopeError):
        open_event(RING, ENCODE((ENCODE(fields), signature)), NOW_US)


@given(st.data())
def test_no_bit_can_be_changed(data):
    sealed = _seal()
    place, bit = data.draw(st.integers(0, len(sealed) - 1)), data.draw(st.integers(0, 7))
    tampered = bytearray(sealed)
    tampered[place] ^= 1 << bit
    with pytest.raises(EnvelopeError):
        open_event(RING, bytes(tampered), NOW_US)


_DEEP = b"\x91" * 100_000


@given(st.binary(max_size=300))
@example(_DEEP)
@example(ENCODE((b"\x98\x01\xa1\xff\xa1l\xa0\x00\x00\xa0\xc4\x00", b"")))  # a kind that is not UTF-8
@example(ENCODE((b"\x99\x01\xa5event\xa1l\xa0\x00\x00\xa0\xc4\x00" + _DEEP, b"")))  # a ninth field without an end
def test_whatever_the_bytes_are_they_are_refused_in_one_way(garbage):
    for open_one in (open_event, open_shard):
        with pytest.raises(EnvelopeError):
            open_one(RING, garbage, NOW_US)


@given(st.binary(max_size=60))
@example(b"\xa1\xff")
def test_a_signed_body_of_garbage_is_refused_too(body):
    sealed = seal(LANE, Kind.EVENT, "broker", msgspec.Raw(body or b"\xc0"), now_us=NOW_US, valid_us=1)
    with pytest.raises(EnvelopeError):
        open_event(RING, sealed, NOW_US)


def test_a_refusal_never_quotes_what_was_inside():
    content, signature = DECODE(
        seal(LANE, Kind.EVENT, "secret", EVENT, now_us=NOW_US, valid_us=SECOND_US), type=tuple[bytes, bytes]
    )
    with pytest.raises(EnvelopeError) as caught:
        open_event(RING, ENCODE((content + b"", bytes(64))), NOW_US)
    assert "secret" not in str(caught.value)
    assert len(signature) == 64


_BODIES = {
    Kind.SHARD: an_order(),
    Kind.EVENT: EVENT,
    Kind.LEASE: RenewLease(b"s" * 16, "lane-a", "w1", b""),
    Kind.JOBS: SubmitJobs(b"n", b"[]"),
    Kind.REPLY: JobReply("key", b"j" * 16, "succeeded"),
    Kind.DESIRED: LaneDesired("lane-a", 2, 1, 5, NOW_US),
    Kind.SHARD_TICKET: Ticket("shards/lane-a/x", 3, b"d" * 32),
    Kind.EVENT_TICKET: Ticket("events/lane-a/x", 3, b"d" * 32),
}
_SIGNERS = {KeyRole.BROKER: BROKER, KeyRole.LANE: LANE, KeyRole.PRODUCER: PRODUCER}
_SIGNED_BY = {
    Kind.SHARD: KeyRole.BROKER,
    Kind.EVENT: KeyRole.LANE,
    Kind.LEASE: KeyRole.LANE,
    Kind.JOBS: KeyRole.PRODUCER,
    Kind.REPLY: KeyRole.BROKER,
    Kind.DESIRED: KeyRole.BROKER,
    Kind.SHARD_TICKET: KeyRole.BROKER,
    Kind.EVENT_TICKET: KeyRole.LANE,
}


@pytest.mark.parametrize("kind", Kind)
def test_each_kind_opens_as_itself_alone_and_by_its_own_role_alone(kind):
    for role, signer in _SIGNERS.items():
        sealed = seal(signer, kind, "someone", _BODIES[kind], now_us=NOW_US, valid_us=1)
        for asked in Kind:
            if asked is kind and role is _SIGNED_BY[kind]:
                assert open_as(asked, RING, sealed, NOW_US).body == _BODIES[kind]
            else:
                with pytest.raises(EnvelopeError, match=f"by a {role} key where '{asked}' belongs"):
                    open_as(asked, RING, sealed, NOW_US)


def test_asking_to_park_is_on_the_wire_what_older_workers_send():
    assert DECODE(ENCODE(AskToPark(b"s", "lane-a", "w1", b"d", 7))) == ["upload", b"s", "lane-a", "w1", b"d", 7]
    assert DECODE(ENCODE(ParkAnswer("events/x", "https://store/x"))) == ["events/x", "https://store/x"]
