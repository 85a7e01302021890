"""Messages taken apart and put together: what the sender wrote stays as it was."""

from __future__ import annotations

import contextlib
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.emulators.servicebus.queues.message import batch_of, content_of, decode_sections, render
from infra.emulators.servicebus.queues.stored import Stored
from infra.emulators.servicebus.wire.encode import encode, encode_fields
from infra.emulators.servicebus.wire.values import (
    Char,
    DecodeError,
    Float,
    Int,
    Long,
    Short,
    Symbol,
    Timestamp,
    UByte,
    UInt,
)

patient = settings(deadline=None)  # the machine may be busy
PROPERTIES = encode_fields(0x73, ["id-1", b"user", "to", "subject"])


def section(code, value):
    return b"\x00\x53" + bytes((code,)) + encode(value)


def test_the_body_and_the_properties_arrive_byte_for_byte():
    application = section(
        0x74, {"u": UByte(1), "s": Short(-1), "f": Float(0.5), "c": Char("x"), "g": uuid4(), "n": None}
    )
    body = section(0x75, b"\x00\xff" * 200) + section(0x75, b"second")
    data = render(content_of(PROPERTIES + application + body), 3, {"x-opt-sequence-number": Long(7)}, {})
    assert PROPERTIES in data
    assert application in data
    assert data.endswith(body)
    assert decode_sections(data)[0x70][4] == 3


def test_reasons_are_added_to_the_senders_properties_and_replace_their_own_kind():
    content = content_of(PROPERTIES + section(0x74, {"a": Int(1), "DeadLetterReason": "old"}) + section(0x77, "body"))
    found = decode_sections(render(content, 0, {}, {"DeadLetterReason": "new"}))
    assert found[0x74] == {"a": 1, "DeadLetterReason": "new"}


def test_a_sender_cannot_pretend_to_be_the_service():
    forged = {Symbol("x-opt-sequence-number"): Long(99), Symbol("x-opt-partition-key"): "p", Symbol("own"): Int(5)}
    content = content_of(section(0x72, forged) + PROPERTIES + section(0x77, "body"))
    message = Stored(content, 4, 1_000, None)
    annotations = decode_sections(message.encoded())[0x72]
    assert annotations["x-opt-sequence-number"] == 4
    assert annotations["x-opt-partition-key"] == "p"
    assert annotations["own"] == 5
    kinds = {str(name): type(value) for name, value in annotations.items()}
    assert kinds["x-opt-sequence-number"] is Long
    assert kinds["x-opt-enqueued-time"] is Timestamp
    assert kinds["x-opt-message-state"] is Int
    assert "x-opt-locked-until" not in kinds
    assert all(isinstance(name, Symbol) for name in annotations)


def test_a_message_without_an_id_gets_one():
    first, second = (content_of(section(0x75, b"x")) for _ in range(2))
    assert first.message_id != second.message_id
    assert decode_sections(render(first, 0, {}, {}))[0x73][0] == first.message_id


def test_time_to_live_comes_from_the_header_or_from_the_absolute_expiry():
    header = encode_fields(0x70, [True, UByte(4), UInt(5_000)])
    assert content_of(header + PROPERTIES + section(0x75, b"x")).ttl_ms == 5_000
    expiring = encode_fields(0x73, ["id", *[None] * 7, Timestamp(9_000), Timestamp(2_000)])
    assert content_of(expiring + section(0x75, b"x")).ttl_ms == 7_000


def test_a_batch_holds_whole_messages():
    inner = [PROPERTIES + section(0x75, b"%d" % number) for number in range(300)]
    found = batch_of(b"".join(section(0x75, message) for message in inner))
    assert [content.tail for content in found] == [section(0x75, b"%d" % number) for number in range(300)]


@pytest.mark.parametrize(
    "data",
    [
        section(0x75, b"x") + PROPERTIES,  # the wrong order
        PROPERTIES + PROPERTIES,  # twice
        section(0x75, b"x") + section(0x77, "y"),  # two kinds of body
        section(0x79, "x"),  # no such section
        b"\x40",  # no section at all
        encode_fields(0x73, ["id"] * 14),  # too many fields
        section(0x74, [True]),  # not a map
    ],
)
def test_what_is_no_message_is_refused(data):
    with pytest.raises(DecodeError):
        content_of(data)


@pytest.mark.parametrize("data", [b"", section(0x77, "no batch"), section(0x75, b"\x01\x02")])
def test_what_is_no_batch_is_refused(data):
    with pytest.raises(DecodeError):
        batch_of(data)


odd = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=4),
    st.binary(max_size=4),
    st.integers(0, (1 << 32) - 1).map(UInt),
    st.just([]),
    st.just({}),
)


@patient
@given(st.lists(odd, max_size=6), st.lists(odd, max_size=13), st.dictionaries(st.text(max_size=3), odd, max_size=3))
def test_fields_of_any_type_are_taken_or_refused(header, properties, application):
    data = encode_fields(0x70, header) + encode_fields(0x73, properties) + section(0x74, application)
    with contextlib.suppress(DecodeError):
        render(content_of(data + section(0x75, b"x")), 0, {}, {})


@patient
@given(st.binary(max_size=120))
def test_any_bytes_are_a_message_or_refused(data):
    with contextlib.suppress(DecodeError):
        content_of(data)
