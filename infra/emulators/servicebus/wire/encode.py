"""From values to AMQP's bytes, in the shortest form that the value allows."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from uuid import UUID

from infra.emulators.servicebus.wire.values import (
    Array,
    Byte,
    Char,
    Decimal,
    Described,
    Float,
    Int,
    Long,
    Short,
    Symbol,
    Timestamp,
    UByte,
    UInt,
    ULong,
    UShort,
    Value,
)

__all__ = ["ARRAY_LONG", "ARRAY_SYMBOL", "ARRAY_TIMESTAMP", "encode", "encode_fields", "encode_map", "encode_plain_map"]

ARRAY_LONG = 0x81
ARRAY_TIMESTAMP = 0x83
ARRAY_SYMBOL = 0xB3

_double, _float, _char = struct.Struct(">d").pack, struct.Struct(">f").pack, struct.Struct(">I").pack
_be32, _be64, _signed32, _signed64 = (struct.Struct(f">{kind}").pack for kind in "IQiq")
_one, _signed_one, _two, _signed_two = (struct.Struct(f">{kind}").pack for kind in "BbHh")
_sizes32 = struct.Struct(">II").pack


def _uint(value: int) -> bytes:
    if value == 0:
        return b"\x43"
    return b"\x52" + _one(value) if value < 256 else b"\x70" + _be32(value)


def _ulong(value: int) -> bytes:
    if value == 0:
        return b"\x44"
    return b"\x53" + _one(value) if value < 256 else b"\x80" + _be64(value)


def _int(value: int) -> bytes:
    return b"\x54" + _signed_one(value) if -128 <= value < 128 else b"\x71" + _signed32(value)


def _long(value: int) -> bytes:
    return b"\x55" + _signed_one(value) if -128 <= value < 128 else b"\x81" + _signed64(value)


def _sized(short: bytes, wide: bytes, data: bytes) -> bytes:
    size = len(data)
    return short + _one(size) + data if size < 256 else wide + _be32(size) + data


def _compound(short: bytes, wide: bytes, count: int, data: bytes) -> bytes:
    size = len(data)
    if size + 1 < 256 and count < 256:
        return short + bytes((size + 1, count)) + data
    return wide + _sizes32(size + 4, count) + data


def _list(value: Sequence[Value]) -> bytes:
    if not value:
        return b"\x45"
    return _compound(b"\xc0", b"\xd0", len(value), b"".join(map(encode, value)))


def _array(value: Array) -> bytes:
    head = bytes((value.code,))
    if value.descriptor is not None:
        head = b"\x00" + encode(value.descriptor) + head
    body = head + b"".join(WIDEST[value.code](item) for item in value.items)
    return _compound(b"\xe0", b"\xf0", len(value.items), body)


def _wide_list(value: Sequence[Value]) -> bytes:
    data = b"".join(map(encode, value))
    return _sizes32(len(data) + 4, len(value)) + data


def _wide_map(value: dict[Value, Value]) -> bytes:
    data = b"".join(encode(each) for pair in value.items() for each in pair)
    return _sizes32(len(data) + 4, 2 * len(value)) + data


def _wide_array(value: Array) -> bytes:
    data = bytes((value.code,)) + b"".join(WIDEST[value.code](item) for item in value.items)
    return _sizes32(len(data) + 4, len(value.items)) + data


WIDEST: dict[int, Callable[[Value], bytes]] = {
    0x40: lambda _: b"",
    0x50: _one,
    0x60: _two,
    0x70: _be32,
    0x80: _be64,
    0x51: _signed_one,
    0x61: _signed_two,
    0x71: _signed32,
    0x81: _signed64,
    0x56: lambda value: b"\x01" if value else b"\x00",
    0x72: _float,
    0x82: _double,
    0x73: lambda value: _char(ord(value)),
    0x83: _signed64,
    0x98: lambda value: value.bytes,
    0x74: lambda value: value.raw,
    0x84: lambda value: value.raw,
    0x94: lambda value: value.raw,
    0xB0: lambda value: _be32(len(value)) + value,
    0xB1: lambda value: _be32(len(value.encode())) + value.encode(),
    0xB3: lambda value: _be32(len(value)) + value.encode("ascii"),
    0xD0: _wide_list,
    0xD1: _wide_map,
    0xF0: _wide_array,
}
"""How an element of an array is written, by the format code that the array names once for all."""

_ENCODERS: dict[type, Callable[[Value], bytes]] = {
    type(None): lambda _: b"\x40",
    bool: lambda value: b"\x41" if value else b"\x42",
    UByte: lambda value: b"\x50" + _one(value),
    UShort: lambda value: b"\x60" + _two(value),
    UInt: _uint,
    ULong: _ulong,
    Byte: lambda value: b"\x51" + _signed_one(value),
    Short: lambda value: b"\x61" + _signed_two(value),
    Int: _int,
    Long: _long,
    Timestamp: lambda value: b"\x83" + _signed64(value),
    Float: lambda value: b"\x72" + _float(value),
    float: lambda value: b"\x82" + _double(value),
    Char: lambda value: b"\x73" + _char(ord(value)),
    UUID: lambda value: b"\x98" + value.bytes,
    bytes: lambda value: _sized(b"\xa0", b"\xb0", value),
    str: lambda value: _sized(b"\xa1", b"\xb1", value.encode()),
    Symbol: lambda value: _sized(b"\xa3", b"\xb3", value.encode("ascii")),
    list: _list,
    dict: lambda value: encode_map(value.items()),
    Array: _array,
    Described: lambda value: b"\x00" + encode(value.descriptor) + encode(value.value),
    Decimal: lambda value: bytes((value.code,)) + value.raw,
}


def encode(value: Value) -> bytes:
    """The value's bytes with its constructor. Raises TypeError for what has no AMQP type, such as a bare `int`."""
    encoder = _ENCODERS.get(type(value))
    if encoder is None:
        raise TypeError(f"{type(value).__name__} has no AMQP type")
    return encoder(value)


def encode_map(pairs: Iterable[tuple[Value, Value]]) -> bytes:
    return encode_plain_map([(encode(key), encode(value)) for key, value in pairs])


def encode_plain_map(pairs: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A map of pairs that are encoded already, so that what a sender wrote passes unchanged."""
    return _compound(b"\xc1", b"\xd1", 2 * len(pairs), b"".join(key + value for key, value in pairs))


def encode_fields(code: int, fields: Sequence[Value]) -> bytes:
    """A performative, section or outcome: a described list without its trailing nulls."""
    count = len(fields)
    while count and fields[count - 1] is None:
        count -= 1
    return b"\x00\x53" + bytes((code,)) + _list(fields[:count])
