"""Requests over links, for `$cbs` and `$management`: a message in, a message back."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple
from uuid import uuid4

from infra.emulators.servicebus.faults import Fault, Point
from infra.emulators.servicebus.peer.links import Incoming, Outgoing
from infra.emulators.servicebus.peer.ports import SessionPort
from infra.emulators.servicebus.queues.message import APPLICATION, PROPERTIES, VALUE, decode_sections
from infra.emulators.servicebus.queues.refusals import ArgumentError, Refusal
from infra.emulators.servicebus.wire.encode import encode, encode_fields
from infra.emulators.servicebus.wire.values import DecodeError, Value

__all__ = ["Answer", "Node", "Request", "RequestLink", "ResponseLink", "argument"]

REQUEST_BYTES_MAX = 1 << 27


class Request(NamedTuple):
    """What was asked: properties by name, and the body."""

    operation: str
    properties: dict[str, Value]
    body: Value
    message_id: Value
    reply_to: str | None


class Answer(NamedTuple):
    """What is answered; `fields` become application properties, with the names that the node's clients expect."""

    fields: dict[str, Value]
    body: Value


class Node:
    """Something that answers requests."""

    point: Point
    entity: str

    def answer(self, request: Request) -> Answer:
        """Do what is asked, or raise a Refusal."""
        raise NotImplementedError

    def refused(self, refusal: Refusal) -> Answer:
        raise NotImplementedError


class ResponseLink(Outgoing):
    """Where answers go; they wait for credit."""

    def __init__(self, session: SessionPort, handle: int, entity: str, address: str, reply_address: str | None) -> None:
        super().__init__(session, handle, entity)
        self.address = address
        self.reply_address = reply_address
        self._waiting: deque[bytes] = deque()

    def put(self, data: bytes) -> None:
        self._waiting.append(data)
        self.resume()

    def resume(self) -> None:
        while self._waiting and self.credit > 0 and self.session.has_window():
            self.spend()
            self.session.transfer(self, uuid4().bytes_le, self._waiting.popleft(), None, settled=True)


class RequestLink(Incoming):
    """Where requests come in."""

    def __init__(self, session: SessionPort, handle: int, address: str, node: Node) -> None:
        super().__init__(session, handle, node.entity, REQUEST_BYTES_MAX)
        self.address = address
        self._node = node
        self.on_delivery = self._take

    def _take(self, delivery_id: int, _message_format: int, data: bytes | None, _size: int, settled: bool) -> None:
        if not settled:
            self.session.accept(delivery_id)
        try:
            request = _request_of(data or b"")
        except DecodeError:
            return  # without a message id there is nothing that an answer could refer to

        def reply(outcome: Value) -> None:
            answer = self._node.refused(outcome) if isinstance(outcome, Refusal) else outcome
            if (link := self._response_link(request.reply_to)) is not None:
                link.put(_reply(request, answer))

        def detach(fault: Fault) -> None:
            self.session.detach(self, fault.condition, fault.description)

        self.session.connection.perform(
            self._node.point, self.entity, lambda: self._node.answer(request), reply, detach
        )

    def _response_link(self, reply_to: str | None) -> ResponseLink | None:
        """The link that the client named for its answers, else the node's own."""
        here = [link for link in self.session.links.values() if isinstance(link, ResponseLink)]
        at_node = [link for link in here if link.address.lower() == self.address.lower()]
        named = [link for link in at_node if reply_to is not None and link.reply_address == reply_to]
        return next(iter([*named, *at_node]), None)


def _request_of(data: bytes) -> Request:
    sections = decode_sections(data)
    fields = [*sections.get(PROPERTIES, []), *[None] * 6]
    properties = {str(key): value for key, value in sections.get(APPLICATION, {}).items()}
    operation = str(properties.get("operation", ""))
    reply_to = None if fields[4] is None else str(fields[4])
    return Request(operation, properties, sections.get(VALUE), fields[0], reply_to)


def _reply(request: Request, answer: Answer) -> bytes:
    correlation_id = request.message_id
    return b"".join(
        (
            encode_fields(PROPERTIES, [None, None, None, None, None, correlation_id]),
            b"\x00\x53\x74" + encode(answer.fields),
            b"\x00\x53\x77" + encode(answer.body),
        )
    )


def argument(body: Value, name: str) -> Value:
    """A field of a request's body. Raises ArgumentError where it is missing."""
    if not isinstance(body, dict) or body.get(name) is None:
        raise ArgumentError(f"the request lacks '{name}'")
    return body[name]
