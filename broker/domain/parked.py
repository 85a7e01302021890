"""A body too large for its lane's bus: it waits in the object store, and a ticket for it travels instead."""

from __future__ import annotations

import msgspec

__all__ = ["AskToPark", "ParkAnswer", "Ticket"]


class Ticket(msgspec.Struct, frozen=True, array_like=True):
    """Where the bytes are and what they must be: `size` of them with this SHA-256.

    `path` is their place in the store, `url` a signed way to it that needs no credentials, where the store has such.
    """

    path: str
    size: int
    digest: bytes
    url: str = ""


class AskToPark(msgspec.Struct, frozen=True, array_like=True, tag="upload"):  # the tag that older workers send
    """A worker that holds no credentials of the store asks where it may park a shard's event."""

    shard_id: bytes
    lane: str
    worker_id: str
    digest: bytes
    size: int


class ParkAnswer(msgspec.Struct, frozen=True, array_like=True):
    """`url` is good for one PUT to `path`; empty where the broker has no store, or the shard isn't the worker's."""

    path: str = ""
    url: str = ""
