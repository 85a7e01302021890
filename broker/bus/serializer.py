"""The one content type on our buses: an opaque binary envelope, nothing around it.

A Celery task body `((envelope,), {}, embed)` and a plain kombu body `envelope` are the same bytes on the wire.
Loading always gives Celery's triple, which a worker takes as it is; a kombu consumer calls `unwrap`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kombu import serialization

__all__ = ["CONTENT_TYPE", "SERIALIZER", "dump_envelope", "load_envelope", "register_serializer", "unwrap"]

SERIALIZER = "broker-envelope"
CONTENT_TYPE = "application/vnd.inference-broker.envelope"

# What Celery puts beside the arguments; workers expect the keys.
_EMBED_KEYS = ("callbacks", "errbacks", "chain", "chord")


def dump_envelope(body: Any) -> bytes:
    """The envelope's bytes; TypeError for anything but an envelope or a task whose only argument is one."""
    if isinstance(body, tuple | list) and len(body) == 3:
        args, kwargs, embed = body
        if kwargs:
            raise TypeError("a task on the bus has no keyword arguments")
        if not isinstance(embed, Mapping) or any(embed.values()):
            raise TypeError("a task on the bus has no callbacks, errbacks, chain or chord")
        if not isinstance(args, tuple | list) or len(args) != 1:
            raise TypeError("a task on the bus has exactly one argument, its envelope")
        body = args[0]
    if not isinstance(body, bytes):
        raise TypeError(f"an envelope is bytes, not {type(body).__name__}")
    if not body:
        raise TypeError("an envelope is never empty")
    return body


def load_envelope(data: bytes | bytearray | memoryview | str) -> tuple[list[bytes], dict[str, Any], dict[str, None]]:
    """Celery's `(args, kwargs, embed)` around the envelope. TypeError for text."""
    if isinstance(data, str):
        raise TypeError("an envelope is bytes, not str")
    return [bytes(data)], {}, dict.fromkeys(_EMBED_KEYS)


def unwrap(loaded: Any) -> bytes:
    """The envelope in what `load_envelope` gave; TypeError for anything else."""
    match loaded:
        case ([bytes() as envelope], {}, {}):
            return envelope
        case _:
            raise TypeError("the message carries no envelope")


def register_serializer() -> None:
    """Make the serializer known to kombu; harmless when it is."""
    if SERIALIZER not in serialization.registry.name_to_type:
        serialization.register(SERIALIZER, dump_envelope, load_envelope, CONTENT_TYPE, content_encoding="binary")
