"""A message as bytes: its sections found, not changed.

What a sender wrote in its properties, application properties and body reaches the receiver byte for byte; only the
header and the annotations are written anew, and reasons of dead-lettering are added.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

from infra.emulators.servicebus.wire.decode import decode, map_spans, skip
from infra.emulators.servicebus.wire.encode import encode, encode_fields, encode_plain_map
from infra.emulators.servicebus.wire.values import DecodeError, Symbol, Timestamp, UByte, UInt

__all__ = ["BATCH_FORMAT", "Content", "batch_of", "content_of", "decode_sections", "render"]

BATCH_FORMAT = 0x80013700

HEADER, DELIVERY_ANNOTATIONS, ANNOTATIONS, PROPERTIES, APPLICATION, DATA, SEQUENCE, VALUE, FOOTER = range(0x70, 0x79)
_BODY = {DATA, SEQUENCE, VALUE}
# The service's own words; what a sender puts under these names is dropped.
_OURS = {
    encode(Symbol(name))
    for name in (
        *("x-opt-sequence-number", "x-opt-enqueued-time", "x-opt-locked-until", "x-opt-enqueue-sequence-number"),
        *("x-opt-message-state", "x-opt-deadletter-source", "x-opt-lock-token"),
    )
}
_SCHEDULED_AT = encode(Symbol("x-opt-scheduled-enqueue-time"))
_PROPERTIES_FIELDS_MAX = 13


class Content(NamedTuple):
    """What a sender sent. `annotations` and `application` are pairs still encoded; `tail` is the body and footer."""

    durable: bool
    priority: int | None
    ttl_ms: int | None
    message_id: str
    session_id: str | None
    scheduled_at_ms: int | None
    annotations: tuple[tuple[bytes, bytes], ...]
    properties: bytes
    application: tuple[tuple[bytes, bytes], ...]
    tail: bytes
    size_bytes: int


def _sections(data: bytes) -> list[tuple[int, int, int, int]]:
    """Each section: its code, where it begins, where its value begins and where it ends."""
    found = []
    at = 0
    last = HEADER - 1
    while at < len(data):
        if data[at] != 0:
            raise DecodeError("a message's section has no descriptor")
        descriptor, inner = decode(data, at + 1)
        code = _SECTION_NAMES.get(descriptor, descriptor)
        end = skip(data, inner)
        if code == DELIVERY_ANNOTATIONS:  # for this one hop; Microsoft's Python client puts them last
            at = end
            continue
        repeated = code == last and code in {DATA, SEQUENCE}
        if not isinstance(code, int) or not HEADER <= code <= FOOTER or (code <= last and not repeated):
            raise DecodeError(f"the section {descriptor} stands where none may")
        if code in _BODY and last in _BODY and code != last:
            raise DecodeError("a message has bodies of two kinds")
        found.append((code, at, inner, end))
        last, at = code, end
    return found


_SECTION_NAMES = {
    "amqp:header:list": HEADER,
    "amqp:delivery-annotations:map": DELIVERY_ANNOTATIONS,
    "amqp:message-annotations:map": ANNOTATIONS,
    "amqp:properties:list": PROPERTIES,
    "amqp:application-properties:map": APPLICATION,
    "amqp:data:binary": DATA,
    "amqp:amqp-sequence:list": SEQUENCE,
    "amqp:amqp-value:*": VALUE,
    "amqp:footer:map": FOOTER,
}


def content_of(data: bytes) -> Content:
    """Take a message apart. Raises DecodeError when it isn't one."""
    try:
        return _content_of(data)
    except (TypeError, ValueError, IndexError) as error:
        raise DecodeError(f"a field of the message is of the wrong type: {error}") from error


def _content_of(data: bytes) -> Content:
    header: list[Any] = []
    properties = b""
    fields: list[Any] = []
    annotations: list[tuple[bytes, bytes]] = []
    application: list[tuple[bytes, bytes]] = []
    tail = b""
    for code, begin, inner, end in _sections(data):
        if code == HEADER:
            header = _list_of(data, inner)
        elif code == ANNOTATIONS:
            annotations = [pair for pair in map_spans(data, inner) if pair[0] not in _OURS]
        elif code == PROPERTIES:
            properties, fields = data[begin:end], _list_of(data, inner)
        elif code == APPLICATION:
            application = map_spans(data, inner)
        elif code in _BODY or code == FOOTER:
            tail += data[begin:end]
    if len(fields) > _PROPERTIES_FIELDS_MAX:
        raise DecodeError("the properties have too many fields")
    fields += [None] * (_PROPERTIES_FIELDS_MAX - len(fields))
    if fields[0] is None:
        # Without one, some clients can't settle the message; the service fills it in.
        fields[0] = uuid.uuid4().hex
        properties = encode_fields(PROPERTIES, fields)
    ttl_ms = header[2] if len(header) > 2 else None
    if ttl_ms is None and fields[8] is not None and fields[9] is not None:
        ttl_ms = max(int(fields[8]) - int(fields[9]), 0)
    return Content(
        durable=bool(header[0]) if header else False,
        priority=_priority(header),
        ttl_ms=None if ttl_ms is None else int(ttl_ms),
        message_id=str(fields[0]),
        session_id=None if fields[10] is None else str(fields[10]),
        scheduled_at_ms=_scheduled_at(annotations),
        annotations=tuple(annotations),
        properties=properties,
        application=tuple(application),
        tail=tail,
        size_bytes=len(data),
    )


def _priority(header: list[Any]) -> int | None:
    priority = header[1] if len(header) > 1 else None
    if priority is not None and not 0 <= int(priority) <= 255:
        raise DecodeError(f"the priority {priority} is none")
    return None if priority is None else int(priority)


def _list_of(data: bytes, at: int) -> list[Any]:
    value, _ = decode(data, at)
    if not isinstance(value, list):
        raise DecodeError("a section that must be a list is none")
    return value


def _scheduled_at(annotations: list[tuple[bytes, bytes]]) -> int | None:
    for key, value in annotations:
        if key == _SCHEDULED_AT:
            moment, _ = decode(value)
            return int(moment) if isinstance(moment, Timestamp) else None
    return None


def batch_of(data: bytes) -> list[Content]:
    """The messages of one batch: every Data section holds a whole message."""
    messages = []
    for code, _, inner, _ in _sections(data):
        if code == DATA:
            value, _ = decode(data, inner)
            if not isinstance(value, bytes):
                raise DecodeError("a Data section holds no binary")
            messages.append(content_of(value))
        elif code in {SEQUENCE, VALUE}:
            raise DecodeError("a batch has only Data sections for its body")
    if not messages:
        raise DecodeError("a batch without messages")
    return messages


def render(
    content: Content, delivery_count: int, annotations: Mapping[str, Any], application: Mapping[str, Any]
) -> bytes:
    """The message as a receiver gets it, with our annotations first and our application properties last."""
    ttl = None if content.ttl_ms is None else UInt(min(content.ttl_ms, 0xFFFFFFFF))
    priority = None if content.priority is None else UByte(content.priority)
    pairs = [(encode(Symbol(name)), encode(value)) for name, value in annotations.items()]
    parts = [
        encode_fields(HEADER, [content.durable, priority, ttl, None, UInt(delivery_count)]),
        b"\x00\x53\x72" + encode_plain_map(pairs + [pair for pair in content.annotations if pair[0] not in _OURS]),
        content.properties,
    ]
    if application:
        added = [(encode(name), encode(value)) for name, value in application.items()]
        replaced = {key for key, _ in added}
        kept = [pair for pair in content.application if pair[0] not in replaced]
        parts.append(b"\x00\x53\x74" + encode_plain_map(kept + added))
    elif content.application:
        parts.append(b"\x00\x53\x74" + encode_plain_map(content.application))
    parts.append(content.tail)
    return b"".join(parts)


def decode_sections(data: bytes) -> dict[int, Any]:
    """A request or reply, all of it decoded; of several Data sections the last."""
    sections = {}
    for code, _, inner, _ in _sections(data):
        sections[code], _ = decode(data, inner)
    return sections
