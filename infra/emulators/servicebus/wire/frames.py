"""Frames and the performatives in them (AMQP 1.0, parts 2 and 5)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from infra.emulators.servicebus.wire.decode import decode
from infra.emulators.servicebus.wire.encode import encode_fields
from infra.emulators.servicebus.wire.values import DecodeError, Described, Symbol, ULong, Value

__all__ = [
    "ACCEPTED",
    "AMQP_FRAME",
    "AMQP_HEADER",
    "EMPTY_FRAME",
    "MODIFIED",
    "RECEIVED",
    "REJECTED",
    "RELEASED",
    "SASL_FRAME",
    "SASL_HEADER",
    "Attach",
    "Begin",
    "Close",
    "Detach",
    "Disposition",
    "End",
    "Flow",
    "Frame",
    "FrameBuffer",
    "Open",
    "SaslInit",
    "SaslMechanisms",
    "SaslOutcome",
    "SaslResponse",
    "Transfer",
    "encode_frame",
    "error_of",
]

AMQP_HEADER = b"AMQP\x00\x01\x00\x00"
SASL_HEADER = b"AMQP\x03\x01\x00\x00"
AMQP_FRAME, SASL_FRAME = 0, 1
EMPTY_FRAME = b"\x00\x00\x00\x08\x02\x00\x00\x00"
RECEIVED, ACCEPTED, REJECTED, RELEASED, MODIFIED = 0x23, 0x24, 0x25, 0x26, 0x27

_head = struct.Struct(">IBBH")


class Open(NamedTuple):
    container_id: Value = None
    hostname: Value = None
    max_frame_size: Value = None
    channel_max: Value = None
    idle_time_out: Value = None
    outgoing_locales: Value = None
    incoming_locales: Value = None
    offered_capabilities: Value = None
    desired_capabilities: Value = None
    properties: Value = None


class Begin(NamedTuple):
    remote_channel: Value = None
    next_outgoing_id: Value = None
    incoming_window: Value = None
    outgoing_window: Value = None
    handle_max: Value = None
    offered_capabilities: Value = None
    desired_capabilities: Value = None
    properties: Value = None


class Attach(NamedTuple):
    name: Value = None
    handle: Value = None
    role: Value = None
    snd_settle_mode: Value = None
    rcv_settle_mode: Value = None
    source: Value = None
    target: Value = None
    unsettled: Value = None
    incomplete_unsettled: Value = None
    initial_delivery_count: Value = None
    max_message_size: Value = None
    offered_capabilities: Value = None
    desired_capabilities: Value = None
    properties: Value = None


class Flow(NamedTuple):
    next_incoming_id: Value = None
    incoming_window: Value = None
    next_outgoing_id: Value = None
    outgoing_window: Value = None
    handle: Value = None
    delivery_count: Value = None
    link_credit: Value = None
    available: Value = None
    drain: Value = None
    echo: Value = None
    properties: Value = None


class Transfer(NamedTuple):
    handle: Value = None
    delivery_id: Value = None
    delivery_tag: Value = None
    message_format: Value = None
    settled: Value = None
    more: Value = None
    rcv_settle_mode: Value = None
    state: Value = None
    resume: Value = None
    aborted: Value = None
    batchable: Value = None


class Disposition(NamedTuple):
    role: Value = None
    first: Value = None
    last: Value = None
    settled: Value = None
    state: Value = None
    batchable: Value = None


class Detach(NamedTuple):
    handle: Value = None
    closed: Value = None
    error: Value = None


class End(NamedTuple):
    error: Value = None


class Close(NamedTuple):
    error: Value = None


class SaslMechanisms(NamedTuple):
    mechanisms: Value = None


class SaslInit(NamedTuple):
    mechanism: Value = None
    initial_response: Value = None
    hostname: Value = None


class SaslResponse(NamedTuple):
    response: Value = None


class SaslOutcome(NamedTuple):
    code: Value = None
    additional_data: Value = None


_KINDS: dict[int, type[Value]] = {
    0x10: Open,
    0x11: Begin,
    0x12: Attach,
    0x13: Flow,
    0x14: Transfer,
    0x15: Disposition,
    0x16: Detach,
    0x17: End,
    0x18: Close,
    0x40: SaslMechanisms,
    0x41: SaslInit,
    0x43: SaslResponse,
    0x44: SaslOutcome,
}
_CODES = {kind: code for code, kind in _KINDS.items()}
_NAMES = {
    **{f"amqp:{kind.__name__.lower()}:list": code for code, kind in _KINDS.items() if code < 0x40},
    "amqp:sasl-mechanisms:list": 0x40,
    "amqp:sasl-init:list": 0x41,
    "amqp:sasl-response:list": 0x43,
}


class Frame(NamedTuple):
    """One frame: an empty one (a heartbeat) has no performative."""

    kind: int
    channel: int
    performative: Value
    payload: bytes


def encode_frame(performative: Value, channel: int = 0, payload: bytes = b"", kind: int = AMQP_FRAME) -> bytes:
    body = encode_fields(_CODES[type(performative)], performative)
    return _head.pack(8 + len(body) + len(payload), 2, kind, channel) + body + payload


def error_of(condition: str, description: str) -> Described:
    """An AMQP error with all its three fields, because clients index them unseen."""
    return Described(ULong(0x1D), [Symbol(condition), description, {}])


class FrameBuffer:
    """Cuts a stream into protocol headers and frames."""

    def __init__(self, max_frame_bytes: int) -> None:
        self._data = bytearray()
        self._max_frame_bytes = max_frame_bytes

    def feed(self, data: bytes) -> None:
        self._data += data

    def header(self) -> bytes | None:
        """The next eight bytes, once they are there."""
        if len(self._data) < 8:
            return None
        header = bytes(self._data[:8])
        del self._data[:8]
        return header

    def frame(self) -> Frame | None:
        """The next frame, once it is there whole."""
        if len(self._data) < 8:
            return None
        size, offset, kind, channel = _head.unpack_from(self._data)
        if size > self._max_frame_bytes or size < 8 or not offset >= 2 or offset * 4 > size:
            raise DecodeError(f"a frame of {size} bytes with its body at {offset * 4}; at most {self._max_frame_bytes}")
        if len(self._data) < size:
            return None
        body = bytes(self._data[offset * 4 : size])
        del self._data[:size]
        if not body:
            return Frame(kind, channel, None, b"")
        described, end = decode(body)
        if not isinstance(described, Described) or not isinstance(described.value, list):
            raise DecodeError("a frame's body doesn't begin with a performative")
        code = _NAMES.get(described.descriptor, described.descriptor)
        kind_of = _KINDS.get(code) if isinstance(code, int) else None
        if kind_of is None or len(described.value) > len(kind_of._fields):
            raise DecodeError(f"no performative has the descriptor {described.descriptor}")
        return Frame(kind, channel, kind_of(*described.value), body[end:])
