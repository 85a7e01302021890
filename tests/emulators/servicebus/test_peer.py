"""The peer on the wire, said frame by frame: what the clients' libraries don't show or never do."""

from __future__ import annotations

import socket
import time
from uuid import UUID

import pytest

from infra.emulators.servicebus import KEY, KEY_NAME, Emulator, Options, QueueDescription
from infra.emulators.servicebus.queues.message import decode_sections
from infra.emulators.servicebus.wire.encode import encode, encode_fields
from infra.emulators.servicebus.wire.frames import (
    AMQP_HEADER,
    EMPTY_FRAME,
    SASL_FRAME,
    SASL_HEADER,
    Attach,
    Begin,
    Close,
    Detach,
    Disposition,
    End,
    Flow,
    FrameBuffer,
    Open,
    SaslInit,
    SaslMechanisms,
    SaslOutcome,
    Transfer,
    encode_frame,
)
from infra.emulators.servicebus.wire.values import Described, Symbol, UByte, UInt, ULong, UShort

MESSAGE = encode_fields(0x73, ["id"]) + b"\x00\x53\x75" + encode(b"body")


@pytest.fixture(scope="module")
def open_door():
    """Without keys, so that no token is needed."""
    queues = {"q": QueueDescription(), "w": QueueDescription()}
    with Emulator(Options(keys={}, tls=False, queues=queues, idle_seconds=0.8)) as running:
        yield running


def terminus(code, address):
    return Described(ULong(code), [address])


class Peer:
    """A client by hand."""

    def __init__(self, emulator, *, begin=True, window=100, **opened):
        self.socket = socket.create_connection(("127.0.0.1", emulator.port), 5)
        self.socket.settimeout(5)
        self.buffer = FrameBuffer(1 << 20)
        if begin:
            self.socket.sendall(AMQP_HEADER)
            assert self.header() == AMQP_HEADER
            self.say(Open("test", **opened))
            self.say(Begin(None, UInt(0), UInt(window), UInt(100)))
            assert self.hear(Open).idle_time_out == 800
            assert self.hear(Begin).remote_channel == 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def header(self):
        while (header := self.buffer.header()) is None:
            self.buffer.feed(self.socket.recv(8))
        return header

    def say(self, performative, payload=b"", channel=0, kind=0):
        self.socket.sendall(encode_frame(performative, channel, payload, kind))

    def frame(self):
        """The next frame, None at the end."""
        while (frame := self.buffer.frame()) is None:
            data = self.socket.recv(65_536)
            if not data:
                return None
            self.buffer.feed(data)
        return frame

    def hear(self, kind):
        """The next performative, which must be of that kind; flows that weren't asked for are passed over."""
        while (frame := self.frame()) is not None and (
            frame.performative is None or (isinstance(frame.performative, Flow) and kind is not Flow)
        ):
            pass
        assert frame is not None, f"the end, not a {kind.__name__}"
        assert isinstance(frame.performative, kind), frame
        self.payload = frame.payload
        return frame.performative

    def attach(self, address, *, receives, handle=0, **more):
        source = terminus(0x28, address if receives else "here")
        target = terminus(0x29, "here" if receives else address)
        count = None if receives else UInt(0)
        self.say(
            Attach(
                f"link-{handle}",
                UInt(handle),
                receives,
                source=source,
                target=target,
                initial_delivery_count=count,
                **more,
            )
        )
        return self.hear(Attach)

    def credit(self, count, handle=0, **more):
        self.say(Flow(UInt(0), UInt(100), UInt(0), UInt(100), UInt(handle), UInt(0), UInt(count), **more))

    def send(self, number, data=MESSAGE, handle=0, **more):
        self.say(Transfer(UInt(handle), UInt(number), b"%d" % number, UInt(0), **more), data)


def fill(emulator, name, count):
    with Peer(emulator) as peer:
        peer.attach(name, receives=False)
        for number in range(count):
            peer.send(number)
        left = count
        while left:
            settled = peer.hear(Disposition)
            left -= int(settled.last or settled.first) - int(settled.first) + 1


def empty(emulator, name):
    emulator.call(lambda service: service.namespace.delete(name))
    emulator.create_queue(name)


def test_sasl_offers_its_mechanisms_in_an_array(open_door):
    with Peer(open_door, begin=False) as peer:
        peer.socket.sendall(SASL_HEADER)
        assert peer.header() == SASL_HEADER
        offered = peer.hear(SaslMechanisms).mechanisms
        assert offered.code == 0xB3
        assert {"ANONYMOUS", "EXTERNAL", "PLAIN", "MSSBCBS"} == set(offered.items)


@pytest.mark.parametrize(("key", "code"), [(KEY, 0), ("wrong", 1)])
def test_sasl_plain_takes_the_shared_key(emulator, key, code):
    with Peer(emulator, begin=False) as peer:
        peer.socket.sendall(SASL_HEADER)
        peer.header()
        peer.hear(SaslMechanisms)
        response = b"\0" + KEY_NAME.encode() + b"\0" + key.encode()
        peer.say(SaslInit(Symbol("PLAIN"), response), kind=SASL_FRAME)
        assert peer.hear(SaslOutcome).code == code
        if code == 0:
            peer.socket.sendall(AMQP_HEADER)
            assert peer.header() == AMQP_HEADER
        else:
            assert peer.frame() is None


def test_another_protocol_is_told_ours(open_door):
    with Peer(open_door, begin=False) as peer:
        peer.socket.sendall(b"AMQP\x00\x00\x09\x01")
        assert peer.header() == SASL_HEADER
        assert peer.frame() is None


def test_heartbeats_come_as_often_as_asked(open_door):
    with Peer(open_door, idle_time_out=UInt(200)) as peer:
        began = time.monotonic()
        for _ in range(4):
            assert peer.frame().performative is None
        assert 0.2 < time.monotonic() - began < 1.5


def test_a_silent_peer_is_hung_up_on_and_one_with_a_heartbeat_is_not(open_door):
    with Peer(open_door) as silent, Peer(open_door) as alive:
        for _ in range(8):
            time.sleep(0.2)
            alive.socket.sendall(EMPTY_FRAME)
        error = silent.hear(Close).error.value
        assert error[0] == "amqp:connection:forced"
        assert "inactive" in error[1]
        alive.attach("q", receives=True)


@pytest.mark.parametrize(
    ("address", "receives", "condition"),
    [
        ("nowhere", True, "amqp:not-found"),
        ("nowhere", False, "amqp:not-found"),
        ("q/$DeadLetterQueue", False, "amqp:not-allowed"),
    ],
)
def test_a_refused_link_is_attached_without_our_end_and_detached(open_door, address, receives, condition):
    with Peer(open_door) as peer:
        answer = peer.attach(address, receives=receives)
        assert (answer.source if receives else answer.target) is None
        detached = peer.hear(Detach)
        assert detached.closed is True
        assert detached.error.value[0] == condition
        assert len(detached.error.value) == 3
        peer.say(Detach(UInt(0), True))
        peer.attach("q", receives=True)  # the handle is free again


def test_an_attach_is_answered_with_its_own_termini(open_door):
    with Peer(open_door) as peer:
        answer = peer.attach("amqps://any.host:5671/q", receives=False)
        assert (answer.name, answer.role) == ("link-0", True)
        assert answer.target.value[0] == "amqps://any.host:5671/q"
        assert answer.max_message_size == 256 * 1024
        assert peer.hear(Flow).link_credit == 1_000


@pytest.mark.parametrize(
    ("mistake", "condition"),
    [
        (Transfer(UInt(9), UInt(0), b"t"), "amqp:session:unattached-handle"),
        (Flow(UInt(0), UInt(1), UInt(0), UInt(1), UInt(9)), "amqp:session:unattached-handle"),
        (Attach("x", UInt(0), True), "amqp:session:handle-in-use"),
        (Attach("x", None, True), "amqp:invalid-field"),
        (Transfer(UInt(0), UInt(0), b"t"), "amqp:not-allowed"),
    ],
)
def test_mistakes_end_the_session_and_not_the_connection(open_door, mistake, condition):
    with Peer(open_door) as peer:
        peer.attach("q", receives=True)
        peer.say(mistake)
        assert peer.hear(End).error.value[0] == condition
        peer.say(End())
        assert peer.hear(End).error is None
        peer.say(Begin(None, UInt(0), UInt(9), UInt(9)))
        peer.hear(Begin)


@pytest.mark.parametrize(
    ("data", "condition"),
    [
        (encode_frame(End(), 7), "amqp:connection:framing-error"),
        (b"\x00\x10\x00\x00\x02\x00\x00\x00", "amqp:decode-error"),
        (b"\x00\x00\x00\x0a\x02\x00\x00\x00\x00\x3f", "amqp:decode-error"),
        (encode_frame(Begin(None, UInt(0), UInt(1), UInt(1)), 5_000), "amqp:connection:framing-error"),
        (encode_frame(Attach("x", "no handle", True)), "amqp:internal-error"),
    ],
)
def test_worse_mistakes_end_the_connection(open_door, data, condition):
    with Peer(open_door) as peer:
        peer.socket.sendall(data)
        assert peer.hear(Close).error.value[0] == condition
        assert peer.frame() is None


def test_dispositions_come_in_ranges(open_door):
    with Peer(open_door) as peer:
        peer.attach("w", receives=False)
        frames = [encode_frame(Transfer(UInt(0), UInt(n), b"%d" % n, UInt(0)), 0, MESSAGE) for n in range(20)]
        peer.socket.sendall(b"".join(frames))
        settled = peer.hear(Disposition)
        assert (settled.first, settled.last, settled.settled) == (0, 19, True)
    empty(open_door, "w")


def test_a_message_that_cannot_be_decoded_is_rejected_with_all_of_an_errors_fields(open_door):
    with Peer(open_door) as peer:
        peer.attach("w", receives=False)
        peer.send(0, b"\x01\x02")
        settled = peer.hear(Disposition)
        assert settled.state.descriptor == 0x25
        condition, text, info = settled.state.value[0].value
        assert (condition, info) == ("com.microsoft:argument-error", {})
        assert "decoded" in text


def test_deliveries_in_pieces_and_one_given_up(open_door):
    with Peer(open_door) as peer:
        peer.attach("w", receives=False)
        peer.send(0, MESSAGE[:4], more=True)
        peer.say(Transfer(UInt(0), aborted=True))
        peer.send(1, MESSAGE[:4], more=True)
        peer.say(Transfer(UInt(0), more=True), MESSAGE[4:9])
        peer.say(Transfer(UInt(0)), MESSAGE[9:])
        settled = peer.hear(Disposition)
        assert (settled.first, settled.state.descriptor) == (1, 0x24)
    assert open_door.state()["queues"]["w"]["active"] == 1
    empty(open_door, "w")


def test_credit_is_kept_to_and_drained(open_door):
    fill(open_door, "w", 5)
    with Peer(open_door) as peer:
        peer.attach("w", receives=True)
        peer.credit(2)
        tokens = [UUID(bytes_le=peer.hear(Transfer).delivery_tag) for _ in range(2)]
        assert len(set(tokens)) == 2
        peer.credit(10, drain=True)
        for _ in range(3):
            assert peer.hear(Transfer).settled is False
        drained = peer.hear(Flow)
        assert (drained.link_credit, drained.delivery_count, drained.drain) == (0, 10, True)
    empty(open_door, "w")


def test_the_sessions_window_is_kept_to(open_door):
    fill(open_door, "w", 4)
    with Peer(open_door, window=2) as peer:
        peer.attach("w", receives=True)
        peer.say(Flow(UInt(1 << 20), UInt(2), UInt(0), UInt(9), UInt(0), UInt(0), UInt(9)))
        first = [peer.hear(Transfer).delivery_id for _ in range(2)]
        peer.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            peer.hear(Transfer)
        peer.socket.settimeout(5)
        peer.say(Flow(UInt((1 << 20) + 2), UInt(9), UInt(0), UInt(9)))
        assert [peer.hear(Transfer).delivery_id for _ in range(2)] == [first[1] + 1, first[1] + 2]
    empty(open_door, "w")


def test_large_messages_keep_to_the_peers_frame_size(open_door):
    big = encode_fields(0x73, ["id"]) + b"\x00\x53\x75" + encode(b"x" * 5_000)
    with Peer(open_door, max_frame_size=UInt(1_024)) as peer:
        peer.attach("w", receives=False)
        peer.send(0, big)
        peer.hear(Disposition)
        peer.attach("w", receives=True, handle=1, snd_settle_mode=UByte(1))
        peer.credit(1, handle=1)
        parts, more = [], True
        while more:
            transfer = peer.hear(Transfer)
            assert len(peer.payload) <= 1_024
            parts.append(peer.payload)
            more = transfer.more
        sections = decode_sections(b"".join(parts))
        assert len(parts) > 4
        assert sections[0x75] == b"x" * 5_000
    assert open_door.state()["queues"]["w"]["active"] == 0


def test_outcomes_of_a_range_are_settled_together(open_door):
    fill(open_door, "w", 3)
    with Peer(open_door) as peer:
        peer.attach("w", receives=True)
        peer.credit(3)
        ids = [peer.hear(Transfer).delivery_id for _ in range(3)]
        accepted = Described(ULong(0x24), [])
        peer.say(Disposition(True, UInt(ids[0]), UInt(ids[2]), False, accepted))
        assert {int(peer.hear(Disposition).first) for _ in range(3)} == set(map(int, ids))
    assert open_door.state()["queues"]["w"]["active"] == 0


def test_a_token_is_asked_for_before_a_queue(emulator, queue):
    with Peer(emulator, begin=False) as peer:
        peer.socket.sendall(AMQP_HEADER)
        peer.header()
        peer.say(Open("test"))
        peer.say(Begin(None, UInt(0), UInt(9), UInt(9)), channel=3)
        peer.hear(Open)
        assert peer.hear(Begin).remote_channel == UShort(3)
        peer.say(Attach("l", UInt(0), True, source=terminus(0x28, queue()), target=terminus(0x29, "x")), channel=3)
        peer.hear(Attach)
        assert peer.hear(Detach).error.value[0] == "amqp:unauthorized-access"
