"""`$management` of a queue: what can't be said by links and outcomes."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from infra.emulators.servicebus.faults import Point
from infra.emulators.servicebus.peer.requests import Answer, Node, Request, argument
from infra.emulators.servicebus.queues.message import Content, content_of
from infra.emulators.servicebus.queues.queue import Queue
from infra.emulators.servicebus.queues.refusals import ArgumentError, NotAllowed, Refusal
from infra.emulators.servicebus.service import Service
from infra.emulators.servicebus.wire.encode import ARRAY_LONG, ARRAY_TIMESTAMP
from infra.emulators.servicebus.wire.values import Array, DecodeError, Int, Symbol, Timestamp, Value

__all__ = ["Management"]

PEEK_BYTES_MAX = 1 << 20


class _NotImplemented(Refusal):
    condition = "amqp:not-implemented"
    status = 501


class Management(Node):
    """Answers for one queue or dead-letter queue."""

    point = Point.MANAGEMENT

    def __init__(self, service: Service, queue: Queue) -> None:
        self.entity = queue.name.lower()
        self._service = service
        self._queue = queue
        self._operations: dict[str, Callable[[Value], Answer]] = {
            "com.microsoft:renew-lock": self._renew,
            "com.microsoft:peek-message": self._peek,
            "com.microsoft:schedule-message": self._schedule,
            "com.microsoft:cancel-scheduled-message": self._cancel,
            "com.microsoft:receive-by-sequence-number": self._receive,
            "com.microsoft:update-disposition": self._settle,
        }

    def answer(self, request: Request) -> Answer:
        operation = self._operations.get(request.operation)
        if operation is None:
            raise _NotImplemented(f"this emulator has no operation '{request.operation}'")
        if not isinstance(request.body, dict):
            raise ArgumentError("the body of a request must be a map")
        answer = operation(request.body)
        self._service.touch(self._queue)
        return answer

    def refused(self, refusal: Refusal) -> Answer:
        fields = {
            "statusCode": Int(refusal.status),
            "statusDescription": str(refusal),
            "errorCondition": Symbol(refusal.condition),
        }
        return Answer(fields, None)

    def _now(self) -> int:
        return self._service.clock.now_ms()

    def _renew(self, body: Value) -> Answer:
        ends = self._queue.renew(self._now(), _tokens(body))
        return _done({"expirations": Array(ARRAY_TIMESTAMP, tuple(map(Timestamp, ends)))})

    def _peek(self, body: Value) -> Answer:
        count = _number(argument(body, "message-count"), "message-count")
        first = _number(argument(body, "from-sequence-number"), "from-sequence-number")
        if count < 1:
            raise ArgumentError(f"message-count is {count}; it must be at least 1")
        found: list[Value] = []
        size = 0
        for message in self._queue.peek(self._now(), first, min(count, 1_000)):
            data = message.encoded(with_lock=False)
            size += len(data)
            if found and size > PEEK_BYTES_MAX:
                break
            found.append({"message": data})
        if not found:
            return Answer({"statusCode": Int(204), "statusDescription": "NoContent"}, None)
        return _done({"messages": found})

    def _schedule(self, body: Value) -> Answer:
        contents = [_content(entry) for entry in _listed(argument(body, "messages"))]
        numbers = self._queue.send(self._now(), contents)
        return _done({"sequence-numbers": _longs(numbers)})

    def _cancel(self, body: Value) -> Answer:
        self._queue.cancel_scheduled(self._now(), _numbers(body))
        return _done(None)

    def _receive(self, body: Value) -> Answer:
        mode = body.get("receiver-settle-mode", 1)
        taken = self._queue.take_deferred(self._now(), _numbers(body), lock=int(mode) == 1)
        messages: list[Value] = []
        for each in taken:
            entry: dict[str, Value] = {"message": each.data}
            if each.token is not None:
                entry["lock-token"] = each.token
            messages.append(entry)
        return _done({"messages": messages})

    def _settle(self, body: Value) -> Answer:
        status = str(argument(body, "disposition-status"))
        tokens, now_ms, queue = _tokens(body), self._now(), self._queue
        changes = body.get("properties-to-modify") or {}
        modified = {str(key): value for key, value in changes.items()}
        for token in tokens:
            match status:
                case "completed":
                    queue.complete(now_ms, token)
                case "abandoned":
                    queue.abandon(now_ms, token, modified)
                case "defered" | "deferred":
                    queue.defer(now_ms, token, modified)
                case "suspended":
                    reason, text = body.get("deadletter-reason"), body.get("deadletter-description")
                    queue.dead_letter(now_ms, token, reason, text, modified)
                case _:
                    raise ArgumentError(f"no disposition has the status '{status}'")
        return _done(None)


def _done(body: Value) -> Answer:
    return Answer({"statusCode": Int(200), "statusDescription": "OK"}, {} if body is None else body)


def _content(entry: Value) -> Content:
    data = argument(entry, "message")
    if not isinstance(data, bytes):
        raise ArgumentError("a message to be scheduled must be binary")
    try:
        content = content_of(data)
    except DecodeError as error:
        raise ArgumentError(f"a message to be scheduled can't be decoded: {error}") from error
    if content.scheduled_at_ms is None:
        raise NotAllowed("a message to be scheduled needs x-opt-scheduled-enqueue-time")
    return content


def _listed(value: Value) -> list[Value]:
    if isinstance(value, Array):
        return list(value.items)
    if not isinstance(value, list):
        raise ArgumentError("a list was expected")
    return value


def _number(value: Value, name: str) -> int:
    if not isinstance(value, int):
        raise ArgumentError(f"'{name}' must be a number")
    return int(value)


def _numbers(body: Value) -> list[int]:
    return [_number(each, "sequence-numbers") for each in _listed(argument(body, "sequence-numbers"))]


def _tokens(body: Value) -> list[UUID]:
    tokens = _listed(argument(body, "lock-tokens"))
    if not all(isinstance(token, UUID) for token in tokens):
        raise ArgumentError("lock tokens must be uuids")
    return tokens


def _longs(numbers: list[int]) -> Array:
    return Array(ARRAY_LONG, tuple(numbers))
