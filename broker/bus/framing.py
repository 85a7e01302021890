"""How a kombu message travels through a driver: one msgpack array, bodies as raw bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from broker.bus.driver import Received

__all__ = ["WireMessage", "decode_message", "encode_message"]


class WireMessage(msgspec.Struct, array_like=True, frozen=True):
    """kombu's message as it travels through a driver. New fields go at the end, with defaults."""

    body: bytes | None
    content_type: str | None
    content_encoding: str | None
    headers: dict[str, Any]
    properties: dict[str, Any]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(WireMessage)


def encode_message(message: Mapping[str, Any]) -> bytes:
    """The bytes that a driver carries. Raises TypeError for a header that msgpack has no form for."""
    body = message["body"]
    return _encoder.encode(
        WireMessage(
            body.encode() if isinstance(body, str) else body,
            message.get("content-type"),
            message.get("content-encoding"),
            message["headers"],
            message["properties"],
        )
    )


def decode_message(received: Received) -> dict[str, Any]:
    """kombu's message dictionary. Raises on anything that `encode_message` didn't write."""
    wire = _decoder.decode(received.data)
    info = wire.properties.get("delivery_info")
    if not isinstance(info, dict):
        raise TypeError("delivery_info is not a mapping")
    info["redelivered"] = received.attempts > 1
    info["attempts"] = received.attempts
    return {
        "body": wire.body,
        "content-type": wire.content_type,
        "content-encoding": wire.content_encoding,
        "headers": wire.headers,
        "properties": wire.properties,
    }
