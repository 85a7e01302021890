"""AMQP's types as Python values.

Where Python has one type for several of AMQP's, a subclass keeps them apart; a bare `int` has no AMQP type and
can't be encoded. `str` is string, `bytes` binary, `float` double, `UUID` uuid, `list` list, `dict` map.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

__all__ = [
    "Array",
    "Byte",
    "Char",
    "Decimal",
    "DecodeError",
    "Described",
    "Float",
    "Int",
    "Long",
    "Short",
    "Symbol",
    "Timestamp",
    "UByte",
    "UInt",
    "ULong",
    "UShort",
    "Value",
]

Value: TypeAlias = Any
"""Any of the types below, or None, bool, float, str, bytes, UUID, list or dict."""


class DecodeError(Exception):
    """Bytes that are not what AMQP allows in their place."""


class UByte(int):
    __slots__ = ()


class UShort(int):
    __slots__ = ()


class UInt(int):
    __slots__ = ()


class ULong(int):
    __slots__ = ()


class Byte(int):
    __slots__ = ()


class Short(int):
    __slots__ = ()


class Int(int):
    __slots__ = ()


class Long(int):
    __slots__ = ()


class Timestamp(int):
    """Milliseconds since 1970, UTC."""

    __slots__ = ()


class Float(float):
    """A number that fits 32 bits."""

    __slots__ = ()


class Char(str):
    """One character."""

    __slots__ = ()


class Symbol(str):
    """A name in ASCII."""

    __slots__ = ()


class Decimal(NamedTuple):
    """A decimal number as it came, by its format code; nobody here computes with it."""

    code: int
    raw: bytes


class Described(NamedTuple):
    """A value with the descriptor that says what it means."""

    descriptor: Any
    value: Any


class Array(NamedTuple):
    """Values of one type, named by the format code of its widest form (see `encode.WIDEST`)."""

    code: int
    items: tuple[Any, ...]
    descriptor: Any = None
