"""The common beginning of prompts: what an engine that has just read it need not read again.

Of a chat it is all before the last message, with the tools and the form of the reply; of a completion the first 1,024
characters of a prompt that goes on after them. Jobs with the same one get neighbouring ids, so that they travel
together. What is kept of it is a digest under a key of the tenant's: a plain one of a known prompt could be guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Protocol, TypeVar

import msgspec

__all__ = ["BEGINNING_BYTES", "Label", "by_beginning", "digest_of", "label"]

BEGINNING_BYTES = 8
"""Of the kept digest: enough to tell a tenant's beginnings apart, not to prove anything."""

_DIGEST_BYTES = 16
_REMEMBERED_BYTES_MAX = 16_384


class HasBeginning(Protocol):
    """An accepted line or a single job."""

    @property
    def beginning(self) -> bytes:
        """`digest_of` its beginning; empty where it has none."""


T = TypeVar("T", bound=HasBeginning)


class Label(msgspec.Struct, frozen=True):
    """What a span says of its jobs: the first one's beginning, None where it has none, and how many kinds there are.

    Jobs without a beginning are a kind where others have one; 0 where none has.
    """

    beginning: bytes | None
    beginnings: int


def digest_of(parts: Sequence[bytes | msgspec.Raw]) -> bytes:
    """The digest of these pieces of JSON, as they came; of none it is empty. It is not to be kept as it is."""
    if not parts:
        return b""
    text = b"\0".join(parts)  # which JSON never holds
    return _remembered(text) if len(text) <= _REMEMBERED_BYTES_MAX else _digest(text)


def by_beginning(jobs: Iterable[T]) -> list[T]:
    """The same jobs: those with one beginning together, where the first of them stands, and in their order."""
    together: dict[bytes, list[T]] = {}
    for job in jobs:
        together.setdefault(job.beginning, []).append(job)
    return [job for alike in together.values() for job in alike]


def label(jobs: Sequence[HasBeginning], key: bytes) -> Label:
    """For the span of these jobs, under their tenant's key."""
    kinds = {job.beginning for job in jobs}
    if kinds == {b""}:
        return Label(None, 0)
    first = jobs[0].beginning
    keyed = blake2b(first, digest_size=BEGINNING_BYTES, key=key).digest() if first else None
    return Label(keyed, len(kinds))


def _digest(text: bytes) -> bytes:
    return blake2b(text, digest_size=_DIGEST_BYTES).digest()


# To look a beginning up takes a fourth of what its digest takes.
_remembered = lru_cache(maxsize=256)(_digest)
