"""AMQP's bytes: what is written is read again, agrees with Microsoft's own codec, and nonsense is refused."""

from __future__ import annotations

import contextlib
import math
from uuid import UUID

import pytest
from azure.servicebus._pyamqp import _decode as pyamqp
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.emulators.servicebus.wire import values as v
from infra.emulators.servicebus.wire.decode import decode, decode_all, map_spans, skip
from infra.emulators.servicebus.wire.encode import encode
from infra.emulators.servicebus.wire.frames import (
    EMPTY_FRAME,
    Attach,
    Begin,
    Detach,
    Disposition,
    Flow,
    FrameBuffer,
    Open,
    Transfer,
    encode_frame,
    error_of,
)

patient = settings(deadline=None)  # the machine may be busy

SIGNED = {v.Byte: 8, v.Short: 16, v.Int: 32, v.Long: 64, v.Timestamp: 64}
UNSIGNED = {v.UByte: 8, v.UShort: 16, v.UInt: 32, v.ULong: 64}
ascii_text = st.text(st.characters(max_codepoint=127), max_size=300)
numbers = st.one_of(
    *(st.integers(-(1 << bits - 1), (1 << bits - 1) - 1).map(kind) for kind, bits in SIGNED.items()),
    *(st.integers(0, (1 << bits) - 1).map(kind) for kind, bits in UNSIGNED.items()),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    st.floats(allow_nan=False),
    st.floats(width=32, allow_nan=False).map(v.Float),
    st.characters(exclude_categories=["Cs"]).map(v.Char),
    st.uuids(),
    st.binary(max_size=300),
    st.text(max_size=300),
    ascii_text.map(v.Symbol),
    st.binary(min_size=4, max_size=4).map(lambda raw: v.Decimal(0x74, raw)),
    st.binary(min_size=16, max_size=16).map(lambda raw: v.Decimal(0x94, raw)),
)
arrays = st.one_of(
    st.lists(ascii_text.map(v.Symbol)).map(lambda items: v.Array(0xB3, tuple(items))),
    st.lists(st.uuids()).map(lambda items: v.Array(0x98, tuple(items))),
    st.lists(st.integers(-(1 << 63), (1 << 63) - 1).map(v.Long)).map(lambda items: v.Array(0x81, tuple(items))),
    st.lists(st.booleans()).map(lambda items: v.Array(0x56, tuple(items))),
    st.lists(st.lists(ascii_text, max_size=3), max_size=3).map(lambda items: v.Array(0xD0, tuple(items))),
)
anything = st.recursive(
    st.one_of(scalars, arrays),
    lambda inner: st.one_of(
        st.lists(inner, max_size=6),
        st.dictionaries(st.one_of(st.text(max_size=9), ascii_text.map(v.Symbol)), inner, max_size=5),
        st.builds(v.Described, st.integers(0, 255).map(v.ULong), inner),
    ),
    max_leaves=12,
)


def types_of(value):
    """The value's types, all the way down: 1 of one type isn't 1 of another."""
    if isinstance(value, v.Array | v.Described | v.Decimal | list):
        return type(value), [types_of(each) for each in value]
    if isinstance(value, tuple):
        return tuple, [types_of(each) for each in value]
    if isinstance(value, dict):
        return dict, [(types_of(key), types_of(each)) for key, each in value.items()]
    return type(value)


@patient
@given(anything)
def test_what_is_written_is_read_again_with_its_types(value):
    data = encode(value)
    assert decode_all(data) == value
    assert skip(data, 0) == len(data)
    again = decode_all(data)
    if not isinstance(value, v.Array):  # an array's items keep their form, not their Python type
        assert encode(again) == data


@patient
@given(scalars)
def test_scalars_keep_their_types(value):
    assert types_of(decode_all(encode(value))) == types_of(value)


@patient
@given(st.binary(max_size=200))
def test_nonsense_is_refused_and_never_crashes(data):
    for read in (lambda: decode(data), lambda: skip(data, 0)):
        with contextlib.suppress(v.DecodeError):
            read()


@patient
@given(anything, st.data())
def test_a_value_cut_short_is_refused(value, data):
    whole = encode(value)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(v.DecodeError):
        decode_all(whole[:cut])


@pytest.mark.parametrize(
    "data",
    [
        "c1040153 01a10161",  # a map with an odd count
        "5602",  # a boolean that is neither
        "d0ffffffff00000001",  # a size beyond the buffer
        "f00000000500ffffff40",  # elements without bytes, by the billion
        "a1ff61",  # a string that is cut off
        "a102c328",  # a string that isn't UTF-8
        "3f",  # no type at all
        "00" * 40,  # descriptors of descriptors
        "",
    ],
)
def test_malformed_values(data):
    with pytest.raises(v.DecodeError):
        decode_all(bytes.fromhex(data))


def test_a_bare_int_has_no_type():
    with pytest.raises(TypeError, match="int has no AMQP type"):
        encode({"a": 1})


def test_the_shortest_form_is_written():
    assert encode(v.UInt(0)) == b"\x43"
    assert encode(v.ULong(255)) == b"\x53\xff"
    assert encode(v.ULong(256)) == b"\x80" + (256).to_bytes(8)
    assert encode(v.Int(-1)) == b"\x54\xff"
    assert encode([]) == b"\x45"
    assert encode("x" * 256)[:5] == b"\xb1\x00\x00\x01\x00"
    assert encode(v.Timestamp(1)) == b"\x83" + (1).to_bytes(8)


@patient
@given(st.dictionaries(ascii_text, scalars, max_size=8))
def test_a_maps_pairs_can_be_taken_as_they_are(mapping):
    data = encode(mapping)
    pairs = [(decode_all(key), decode_all(value)) for key, value in map_spans(data, 0)]
    assert pairs == list(mapping.items())


def _as_pyamqp_reads(value):
    match value:
        case v.Symbol() | v.Char():
            return value.encode()
        case str():
            return value.encode()
        case list():
            return [_as_pyamqp_reads(each) for each in value]
        case dict():
            return {_as_pyamqp_reads(key): _as_pyamqp_reads(each) for key, each in value.items()}
        case v.Array():
            return [_as_pyamqp_reads(each) for each in value.items]
    return value


plain = st.one_of(
    st.none(),
    st.booleans(),
    numbers,
    st.floats(allow_nan=False),
    st.uuids(),
    st.binary(max_size=300),
    st.text(max_size=99),
)
nested = st.recursive(
    plain, lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=9), inner, max_size=4))
)


@patient
@given(nested)
def test_microsofts_codec_reads_what_we_write(value):
    data = encode(value)
    constructor = pyamqp._DECODE_BY_CONSTRUCTOR[data[0]]
    rest, found = constructor(memoryview(data)[1:])
    assert not len(rest)
    assert found == _as_pyamqp_reads(value)


@patient
@given(st.floats(width=32))
def test_floats_of_32_bits(value):
    found = decode_all(encode(v.Float(value)))
    assert found == value or (math.isnan(found) and math.isnan(value))


FRAMES = [
    (Open("c", None, v.UInt(512), v.UShort(9), v.UInt(1000)), 0, b""),
    (Begin(v.UShort(1), v.UInt(0), v.UInt(5), v.UInt(5)), 7, b""),
    (Attach("l", v.UInt(0), True, initial_delivery_count=v.UInt(0)), 7, b""),
    (Flow(v.UInt(1), v.UInt(2), v.UInt(3), v.UInt(4), v.UInt(0), v.UInt(0), v.UInt(9), None, True), 7, b""),
    (Transfer(v.UInt(0), v.UInt(1), b"tag", v.UInt(0), False, True), 7, b"payload"),
    (Disposition(True, v.UInt(0), v.UInt(4), True, v.Described(v.ULong(0x24), [])), 7, b""),
    (Detach(v.UInt(0), True, error_of("amqp:not-found", "gone")), 7, b""),
]


@patient
@given(st.integers(1, 40))
def test_frames_come_whole_whatever_the_pieces(size):
    stream = b"".join(encode_frame(frame, channel, payload) for frame, channel, payload in FRAMES) + EMPTY_FRAME
    buffer = FrameBuffer(4096)
    found = []
    for at in range(0, len(stream), size):
        buffer.feed(stream[at : at + size])
        while (frame := buffer.frame()) is not None:
            found.append(frame)
    assert [(each.performative, each.channel, each.payload) for each in found[:-1]] == FRAMES
    assert found[-1].performative is None


@pytest.mark.parametrize(
    "frame",
    [
        b"\x00\x00\x00\x07\x02\x00\x00\x00",  # smaller than its head
        b"\x00\x00\x10\x01\x02\x00\x00\x00",  # larger than agreed
        b"\x00\x00\x00\x09\x01\x00\x00\x00\x40",  # the body begins inside the head
        b"\x00\x00\x00\x09\x02\x00\x00\x00\x40",  # no performative
        b"\x00\x00\x00\x0c\x02\x00\x00\x00\x00\x53\x99\x45",  # an unknown one
    ],
)
def test_bad_frames_are_refused(frame):
    buffer = FrameBuffer(4096)
    buffer.feed(frame)
    with pytest.raises(v.DecodeError):
        buffer.frame()


def test_an_error_has_all_its_fields():
    assert decode_all(encode(error_of("amqp:not-found", "text"))) == v.Described(29, ["amqp:not-found", "text", {}])


def test_a_lock_token_travels_in_nets_order():
    token = UUID("00112233-4455-6677-8899-aabbccddeeff")
    assert token.bytes_le.hex() == "33221100554477668899aabbccddeeff"
    assert encode(token)[1:] == token.bytes
