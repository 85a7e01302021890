"""From AMQP's bytes to values. Whatever is malformed raises DecodeError and nothing else."""

from __future__ import annotations

import struct
from collections.abc import Callable
from uuid import UUID

from infra.emulators.servicebus.wire.values import (
    Array,
    Byte,
    Char,
    Decimal,
    DecodeError,
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

__all__ = ["decode", "decode_all", "map_spans", "skip"]

DEPTH_MAX = 32
EMPTY_ELEMENTS_MAX = 65_536
Reader = Callable[[bytes, int, int], tuple[Value, int]]

_be32 = struct.Struct(">I").unpack_from


def _fixed(kind: Callable[[Value], Value], layout: str) -> Reader:
    form = struct.Struct(f">{layout}")
    size, unpack = form.size, form.unpack_from

    def read(data: bytes, at: int, _: int) -> tuple[Value, int]:
        return kind(unpack(data, at)[0]), at + size

    return read


def _constant(value: Value) -> Reader:
    return lambda _data, at, _depth: (value, at)


def _raw(size: int, kind: Callable[[bytes], Value]) -> Reader:
    def read(data: bytes, at: int, _: int) -> tuple[Value, int]:
        end = at + size
        return kind(_slice(data, at, end)), end

    return read


def _slice(data: bytes, at: int, end: int) -> bytes:
    if end > len(data):
        raise DecodeError(f"a value ends {end - len(data)} bytes behind its buffer")
    return data[at:end]


def _variable(width: int, kind: Callable[[bytes], Value]) -> Reader:
    def read(data: bytes, at: int, _: int) -> tuple[Value, int]:
        size = data[at] if width == 1 else _be32(data, at)[0]
        end = at + width + size
        return kind(_slice(data, at + width, end)), end

    return read


def _header(data: bytes, at: int, width: int) -> tuple[int, int, int]:
    """Where a compound's elements begin, where they end and how many there are."""
    if width == 1:
        size, count = data[at], data[at + 1]
    else:
        size, count = _be32(data, at)[0], _be32(data, at + 4)[0]
    end = at + width + size
    if end > len(data) or size < width:
        raise DecodeError("a compound value has a wrong size")
    return at + 2 * width, end, count


def _elements(data: bytes, at: int, end: int, count: int, depth: int) -> list[Value]:
    if count > end - at:
        raise DecodeError("a compound value counts more elements than it has bytes")
    values = []
    for _ in range(count):
        value, at = _value(data, at, depth + 1)
        values.append(value)
    if at != end:
        raise DecodeError("the elements of a compound value don't fill it")
    return values


def _list(width: int) -> Reader:
    def read(data: bytes, at: int, depth: int) -> tuple[Value, int]:
        begin, end, count = _header(data, at, width)
        return _elements(data, begin, end, count, depth), end

    return read


def _map(width: int) -> Reader:
    def read(data: bytes, at: int, depth: int) -> tuple[Value, int]:
        begin, end, count = _header(data, at, width)
        if count % 2:
            raise DecodeError("a map with a key that has no value")
        values = _elements(data, begin, end, count, depth)
        try:
            return dict(zip(values[::2], values[1::2], strict=True)), end
        except TypeError as error:
            raise DecodeError("a map's key is a list or a map") from error

    return read


def _array(width: int) -> Reader:
    def read(data: bytes, at: int, depth: int) -> tuple[Value, int]:
        at, end, count = _header(data, at, width)
        descriptor = None
        if data[at] == 0:
            descriptor, at = _value(data, at + 1, depth + 1)
        code = data[at]
        element = _READERS.get(code)
        if element is None or depth > DEPTH_MAX:
            raise DecodeError(f"an array of the unknown type 0x{code:02x}")
        # Elements without bytes of their own (an array of nulls) would let a few bytes ask for billions.
        if count > EMPTY_ELEMENTS_MAX and code in _EMPTY:
            raise DecodeError(f"an array of {count} elements without bytes")
        at += 1
        items = []
        for _ in range(count):
            item, at = element(data, at, depth + 1)
            items.append(item)
        if at != end:
            raise DecodeError("the elements of an array don't fill it")
        return Array(_WIDE.get(code, code), tuple(items), descriptor), end

    return read


def _described(data: bytes, at: int, depth: int) -> tuple[Value, int]:
    descriptor, at = _value(data, at, depth + 1)
    value, at = _value(data, at, depth + 1)
    return Described(descriptor, value), at


def _truth(octet: int) -> bool:
    if octet > 1:
        raise DecodeError(f"a boolean of the octet {octet}")
    return octet == 1


_READERS: dict[int, Reader] = {
    0x00: _described,
    0x40: _constant(None),
    0x41: _constant(True),
    0x42: _constant(False),
    0x43: _constant(UInt(0)),
    0x44: _constant(ULong(0)),
    0x45: lambda _data, at, _depth: ([], at),
    0x50: _fixed(UByte, "B"),
    0x51: _fixed(Byte, "b"),
    0x52: _fixed(UInt, "B"),
    0x53: _fixed(ULong, "B"),
    0x54: _fixed(Int, "b"),
    0x55: _fixed(Long, "b"),
    0x56: _fixed(_truth, "B"),
    0x60: _fixed(UShort, "H"),
    0x61: _fixed(Short, "h"),
    0x70: _fixed(UInt, "I"),
    0x71: _fixed(Int, "i"),
    0x72: _fixed(Float, "f"),
    0x73: _fixed(lambda point: Char(chr(point)), "I"),
    0x74: _raw(4, lambda raw: Decimal(0x74, raw)),
    0x80: _fixed(ULong, "Q"),
    0x81: _fixed(Long, "q"),
    0x82: _fixed(float, "d"),
    0x83: _fixed(Timestamp, "q"),
    0x84: _raw(8, lambda raw: Decimal(0x84, raw)),
    0x94: _raw(16, lambda raw: Decimal(0x94, raw)),
    0x98: _raw(16, lambda raw: UUID(bytes=raw)),
    0xA0: _variable(1, bytes),
    0xA1: _variable(1, lambda raw: raw.decode()),
    0xA3: _variable(1, lambda raw: Symbol(raw.decode("ascii"))),
    0xB0: _variable(4, bytes),
    0xB1: _variable(4, lambda raw: raw.decode()),
    0xB3: _variable(4, lambda raw: Symbol(raw.decode("ascii"))),
    0xC0: _list(1),
    0xC1: _map(1),
    0xD0: _list(4),
    0xD1: _map(4),
    0xE0: _array(1),
    0xF0: _array(4),
}
_EMPTY = frozenset(range(0x40, 0x46))
_WIDE = {
    0x41: 0x56,
    0x42: 0x56,
    0x43: 0x70,
    0x44: 0x80,
    0x45: 0xD0,
    0x52: 0x70,
    0x53: 0x80,
    0x54: 0x71,
    0x55: 0x81,
    0xA0: 0xB0,
    0xA1: 0xB1,
    0xA3: 0xB3,
    0xC0: 0xD0,
    0xC1: 0xD1,
    0xE0: 0xF0,
}
_FIXED_SIZES = {4: 0, 5: 1, 6: 2, 7: 4, 8: 8, 9: 16}


def _value(data: bytes, at: int, depth: int) -> tuple[Value, int]:
    reader = _READERS.get(data[at])
    if reader is None or depth > DEPTH_MAX:
        raise DecodeError(f"no type has the format code 0x{data[at]:02x}" if reader is None else "nested too deep")
    return reader(data, at + 1, depth)


def decode(data: bytes, at: int = 0) -> tuple[Value, int]:
    """The value that begins there, and where it ends."""
    try:
        return _value(data, at, 0)
    except (struct.error, IndexError, UnicodeError, ValueError, OverflowError) as error:
        raise DecodeError(f"a malformed value at byte {at}: {error}") from error


def decode_all(data: bytes) -> Value:
    """The one value that fills the buffer."""
    value, end = decode(data)
    if end != len(data):
        raise DecodeError(f"{len(data) - end} bytes behind the value")
    return value


def skip(data: bytes, at: int) -> int:
    """Where the value that begins there ends, without looking into it."""
    try:
        code = data[at]
        if code == 0:
            return skip(data, skip(data, at + 1))
        if code not in _READERS:
            raise DecodeError(f"no type has the format code 0x{code:02x}")
        high = code >> 4
        if high <= 9:
            end = at + 1 + _FIXED_SIZES[high]
        elif high % 2 == 0:
            end = at + 2 + data[at + 1]
        else:
            end = at + 5 + _be32(data, at + 1)[0]
    except (struct.error, IndexError) as error:
        raise DecodeError(f"a value at byte {at} is cut off") from error
    if end > len(data):
        raise DecodeError(f"a value at byte {at} ends behind its buffer")
    return end


def map_spans(data: bytes, at: int) -> list[tuple[bytes, bytes]]:
    """The pairs of the map that begins there, each still encoded."""
    if data[at] not in {0xC1, 0xD1}:
        raise DecodeError("not a map")
    begin, end, count = _header(data, at + 1, 1 if data[at] == 0xC1 else 4)
    pairs = []
    while begin < end:
        middle = skip(data, begin)
        after = skip(data, middle)
        pairs.append((data[begin:middle], data[middle:after]))
        begin = after
    if begin != end or len(pairs) * 2 != count:
        raise DecodeError("the pairs of a map don't fill it")
    return pairs
