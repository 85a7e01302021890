"""Putting, getting, updating and deleting messages, and counting them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from infra.emulators.ociqueue.faults import Fault
from infra.emulators.ociqueue.http import HttpResponse, json_response
from infra.emulators.ociqueue.messages import Counts, Message, Messages
from infra.emulators.ociqueue.queues import DEAD_SUFFIX
from infra.emulators.ociqueue.refusals import Refusal, invalid, too_large
from infra.emulators.ociqueue.service import Call

__all__ = [
    "channels",
    "delete_many",
    "delete_one",
    "get",
    "moment",
    "put",
    "stats",
    "update_many",
    "update_one",
    "whole",
]

CUSTOM_PROPERTIES = "customProperties"


async def put(call: Call, queue: str) -> HttpResponse:
    """All or none: what is wrong with one message is wrong with the request."""
    if queue.endswith(DEAD_SUFFIX):
        raise invalid("nothing can be put into a dead letter queue")
    limits = call.service.limits
    if len(call.request.body) > limits.request_bytes:
        raise too_large(f"the request has {len(call.request.body)} bytes; {limits.request_bytes} are taken")
    entries = call.request.json().get("messages")
    if not isinstance(entries, list) or not 1 <= len(entries) <= limits.batch_messages:
        raise invalid(f"messages must be a list of 1 to {limits.batch_messages}")
    checked = [_checked(entry, limits.message_bytes) for entry in entries]
    now_ms = call.now_ms()
    made = call.service.queues.put(now_ms, queue, checked)
    return json_response({"messages": [{"id": each.number, "expireAfter": moment(each.expires_ms)} for each in made]})


def _checked(entry: object, bytes_max: int) -> tuple[str, dict[str, Any]]:
    given = entry if isinstance(entry, dict) else {}
    content = given.get("content")
    if not isinstance(content, str):
        raise invalid("each message needs a content, which is a string")
    try:
        size = len(content.encode())
    except UnicodeEncodeError:
        raise invalid("the content has half of a surrogate pair") from None
    if size > bytes_max:
        raise invalid(f"the content has {size} bytes; {bytes_max} are taken")
    metadata = given.get("metadata") or {}
    properties = (metadata.get(CUSTOM_PROPERTIES) or {}) if isinstance(metadata, dict) else None
    if not isinstance(properties, dict) or not all(isinstance(value, str) for value in properties.values()):
        raise invalid("metadata must be an object, and its customProperties strings by name")
    return content, metadata


async def get(call: Call, queue: str) -> HttpResponse:
    """Wait until there is a message to deliver, or the time is over."""
    messages = _messages(call, queue)
    description = call.service.queues.find(queue.removesuffix(DEAD_SUFFIX)).description
    limits, asked = call.service.limits, call.request.query
    visibility = whole(asked, "visibilityInSeconds", description.visibility_seconds, 0, limits.visibility_seconds)
    timeout = whole(asked, "timeoutInSeconds", description.timeout_seconds, 0, limits.timeout_seconds)
    limit = whole(asked, "limit", 1, 1, limits.batch_messages)
    _refuse_groups(asked)
    deadline_ms = call.now_ms() + timeout * 1000
    changed = asyncio.Event()
    messages.listeners.add(changed)
    try:
        while True:
            changed.clear()
            now_ms = call.now_ms()
            _messages(call, queue)  # it may be gone by now
            taken = messages.take(now_ms, limit, visibility * 1000, asked.get("channelFilter"), limits)
            if taken or now_ms >= deadline_ms:
                return json_response({"messages": [_plain(message) for message in taken]})
            await call.service.clock.wait(changed, min(deadline_ms, messages.next_return_ms() or deadline_ms))
    finally:
        messages.listeners.discard(changed)


def _messages(call: Call, ocid: str) -> Messages:
    return call.service.queues.messages(call.now_ms(), ocid)


def _plain(message: Message) -> dict[str, Any]:
    plain = {
        "id": message.number,
        "content": message.content,
        "receipt": message.receipt or secrets.token_urlsafe(24),  # one that was only peeked at is good for nothing
        "deliveryCount": message.delivery_count,
        "visibleAfter": moment(message.visible_ms),
        "expireAfter": moment(message.expires_ms),
        "createdAt": moment(message.created_ms),
    }
    return {**plain, "metadata": message.metadata} if message.metadata else plain


async def delete_one(call: Call, queue: str, receipt: str, spoilt: Fault | None = None) -> HttpResponse:
    messages = _messages(call, queue)
    _refuse_groups(call.request.query)
    if spoilt is not None:
        raise spoilt.refusal()
    messages.delete(call.now_ms(), receipt)
    return HttpResponse(204)


async def update_one(call: Call, queue: str, receipt: str, spoilt: Fault | None = None) -> HttpResponse:
    messages = _messages(call, queue)
    _refuse_groups(call.request.query)
    if spoilt is not None:
        raise spoilt.refusal()
    visibility = whole(call.request.json(), "visibilityInSeconds", None, 0, call.service.limits.visibility_seconds)
    return json_response(_updated(messages.update(call.now_ms(), receipt, visibility * 1000)))


async def delete_many(call: Call, queue: str, spoilt: Fault | None = None) -> HttpResponse:
    messages = _messages(call, queue)

    def delete(entry: dict[str, Any]) -> dict[str, Any]:
        messages.delete(call.now_ms(), str(entry.get("receipt")))
        return {}

    return _each(call, delete, spoilt)


async def update_many(call: Call, queue: str, spoilt: Fault | None = None) -> HttpResponse:
    messages = _messages(call, queue)

    def update(entry: dict[str, Any]) -> dict[str, Any]:
        visibility = whole(entry, "visibilityInSeconds", None, 0, call.service.limits.visibility_seconds)
        return _updated(messages.update(call.now_ms(), str(entry.get("receipt")), visibility * 1000))

    return _each(call, update, spoilt)


def _updated(message: Message) -> dict[str, Any]:
    return {"id": message.number, "visibleAfter": moment(message.visible_ms)}


def _each(call: Call, act: Callable[[dict[str, Any]], dict[str, Any]], spoilt: Fault | None) -> HttpResponse:
    """Each entry succeeds or fails by itself; the answer has them in the order of the request."""
    _refuse_groups(call.request.query)
    entries = call.request.json().get("entries")
    if not isinstance(entries, list) or not 1 <= len(entries) <= call.service.limits.batch_messages:
        raise invalid(f"entries must be a list of 1 to {call.service.limits.batch_messages}")
    answers: list[dict[str, Any]] = []
    failures = {"clientFailures": 0, "serverFailures": 0}
    for index, entry in enumerate(entries):
        try:
            if spoilt is not None and index % 2 == 0:
                raise spoilt.refusal()
            if not isinstance(entry, dict):
                raise invalid("an entry must be an object")
            answers.append(act(entry))
        except Refusal as error:
            failures["serverFailures" if error.status >= 500 else "clientFailures"] += 1
            answers.append({"errorCode": error.status, "errorMessage": error.message})
    return json_response({**failures, "entries": answers})


async def stats(call: Call, queue: str) -> HttpResponse:
    now_ms = call.now_ms()
    described = call.service.queues.active(now_ms, queue)
    channel = call.request.query.get("channelId")
    counted = {
        "queue": _counts(described.messages.counts(now_ms, channel)),
        "dlq": _counts(described.dead.counts(now_ms, channel)),
    }
    return json_response(counted if channel is None else {**counted, "channelId": channel})


def _counts(counts: Counts) -> dict[str, int]:
    return {
        "visibleMessages": counts.visible,
        "inFlightMessages": counts.in_flight,
        "sizeInBytes": counts.size_bytes,
    }


async def channels(call: Call, queue: str) -> HttpResponse:
    now_ms = call.now_ms()
    return json_response({"items": call.service.queues.active(now_ms, queue).messages.channels(now_ms)})


def whole(given: Mapping[str, Any], name: str, default: int | None, least: int, most: int) -> int:
    """A whole number in its range. Raises Refusal."""
    text = given.get(name)
    if text is None and default is not None:
        return default
    try:
        value = int(str(text))
    except (TypeError, ValueError):
        raise invalid(f"{name} is {text!r}; it must be a whole number") from None
    if not least <= value <= most:
        raise invalid(f"{name} is {value}; it must be between {least} and {most}")
    return value


def moment(at_ms: int) -> str:
    """As RFC 3339 has it."""
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _refuse_groups(asked: Mapping[str, str]) -> None:
    if "consumerGroupId" in asked:
        raise invalid("this emulator has no consumer groups")
