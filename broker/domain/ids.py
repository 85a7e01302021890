"""Identifiers: UUIDv7 (RFC 9562), held as 16 bytes so that ten thousand of them cost nothing to copy.

A *span* of jobs shares the first twelve bytes of its ids and counts up in the last four, so a run of
jobs is named by its first id and a length, and a range scan on the primary key finds exactly its members.
"""

from __future__ import annotations

import os
import struct
import time
import uuid
from collections import deque

__all__ = [
    "format_id",
    "id_at",
    "id_offset",
    "ids_of_span",
    "new_id",
    "new_span",
    "parse_id",
    "span_of",
    "time_us_of",
]

_COUNTER = struct.Struct(">I")
_RANDOM_BYTES = 10
_FETCHED_AT_ONCE = 256

# Fetched many at a time, since each call to the system lets go of the interpreter; a deque's ends are safe to
# use from any thread. A forked process must not hand out its parent's.
_randomness: deque[bytes] = deque()
os.register_at_fork(after_in_child=_randomness.clear)

_last_span = [(0, 0)]  # the millisecond and the number of the newest span


def _random() -> bytes:
    try:
        return _randomness.popleft()
    except IndexError:
        fresh = os.urandom(_RANDOM_BYTES * (_FETCHED_AT_ONCE + 1))
        _randomness.extend(fresh[at : at + _RANDOM_BYTES] for at in range(_RANDOM_BYTES, len(fresh), _RANDOM_BYTES))
        return fresh[:_RANDOM_BYTES]


def new_id() -> bytes:
    """A fresh UUIDv7: 48 bits of Unix milliseconds, then 74 random bits."""
    random = bytearray(_random())
    random[0] = 0x70 | (random[0] & 0x0F)
    random[2] = 0x80 | (random[2] & 0x3F)
    return (time.time_ns() // 1_000_000).to_bytes(6, "big") + bytes(random)


def new_span(at_us: int | None = None) -> bytes:
    """The first id of a span; its members are `id_at(first, 0)`, `id_at(first, 1)`, and so on.

    `at_us` is the time that its ids tell, for jobs the database's; by default this machine's. Of one process and one
    millisecond, later spans have greater ids (but for one in thousands, at more than 2,048 in it).
    """
    at_ms = (time.time_ns() // 1_000 if at_us is None else at_us) // 1_000
    random = _random()
    last_ms, number = _last_span[0]
    # A random start in the lower half leaves room to count up (RFC 9562, 6.2, method 1). Two threads may count alike:
    # the bits after it keep their spans apart.
    number = (number + 1) & 0x0FFF if last_ms == at_ms else int.from_bytes(random[:2], "big") & 0x07FF
    _last_span[0] = (at_ms, number)
    high = (0x7000 | number).to_bytes(2, "big")
    return at_ms.to_bytes(6, "big") + high + bytes((0x80 | (random[2] & 0x3F),)) + random[3:6] + b"\0\0\0\0"


def id_at(first: bytes, index: int) -> bytes:
    """The id `index` places after `first` in its span."""
    return first[:12] + _COUNTER.pack(_COUNTER.unpack_from(first, 12)[0] + index)


def id_offset(first: bytes, member: bytes) -> int:
    """How many places `member` stands after `first`; the two must be of one span."""
    if first[:12] != member[:12]:
        raise ValueError(f"{member.hex()} is not in the span of {first.hex()}")
    return int(_COUNTER.unpack_from(member, 12)[0] - _COUNTER.unpack_from(first, 12)[0])


def span_of(member: bytes) -> bytes:
    """What the ids of one span have in common, and no other span's have."""
    return member[:12]


def ids_of_span(first: bytes, count: int) -> list[bytes]:
    """All ids of a span of `count` members starting at `first`."""
    prefix = first[:12]
    start = _COUNTER.unpack_from(first, 12)[0]
    return [prefix + _COUNTER.pack(n) for n in range(start, start + count)]


def format_id(kind: str, value: bytes) -> str:
    """An id as people and the API see it, for example `job_0197…` (32 hexadecimal digits)."""
    return f"{kind}_{value.hex()}"


def parse_id(kind: str, text: str) -> bytes:
    """The inverse of `format_id`; also takes a bare UUID with or without dashes.

    Raises ValueError naming the text when it is no such id.
    """
    bare = text.removeprefix(f"{kind}_")
    try:
        return uuid.UUID(bare).bytes
    except ValueError:
        raise ValueError(f"{text!r} is not a {kind} id, which looks like {kind}_ and 32 hexadecimal digits") from None


def time_us_of(value: bytes) -> int:
    """When a UUIDv7 was minted, in Unix microseconds (to the millisecond)."""
    return int.from_bytes(value[:6], "big") * 1000
