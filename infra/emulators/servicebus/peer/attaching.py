"""A client attaches a link: to which node, with what right, and how it is answered."""

from __future__ import annotations

from typing import Protocol

from infra.emulators.servicebus.faults import Fault, Point
from infra.emulators.servicebus.peer.cbs import Cbs
from infra.emulators.servicebus.peer.links import Incoming, Outgoing
from infra.emulators.servicebus.peer.management import Management
from infra.emulators.servicebus.peer.ports import SessionPort
from infra.emulators.servicebus.peer.receiving import QueueReceiver
from infra.emulators.servicebus.peer.requests import Node, RequestLink, ResponseLink
from infra.emulators.servicebus.peer.sending import QueueSender
from infra.emulators.servicebus.peer.violation import Violation
from infra.emulators.servicebus.queues.description import QueueStatus
from infra.emulators.servicebus.queues.queue import Queue
from infra.emulators.servicebus.queues.refusals import EntityDisabled, NotAllowed, Refusal
from infra.emulators.servicebus.tokens import path_of
from infra.emulators.servicebus.wire import frames
from infra.emulators.servicebus.wire.values import Described, Symbol, UByte, UInt, ULong, Value

__all__ = ["attach"]

MANAGEMENT = "/$management"
SETTLED = 1  # the sender's settle mode of receive-and-delete
SESSION_FILTER = "com.microsoft:session-filter"


class AttachingSession(SessionPort, Protocol):
    """What a session does besides for links that come."""

    def add(self, link: Incoming | Outgoing) -> None:
        """The link is attached."""

    def refuse(self, handle: int, condition: str, description: str) -> None:
        """Detach a link that was only just answered."""


class _NotFound(Refusal):
    condition = "amqp:not-found"


class _Unauthorized(Refusal):
    condition = "amqp:unauthorized-access"


def attach(session: AttachingSession, asked: frames.Attach) -> None:
    """Answer an attach: with a link, or with a link and its detach at once."""
    if not isinstance(asked.name, str) or asked.handle is None or not isinstance(asked.role, bool):
        raise Violation("amqp:invalid-field", "an attach needs a name, a handle and a role")
    if asked.handle in session.links:
        raise Violation("amqp:session:handle-in-use", f"handle {asked.handle} is in use")
    if asked.handle > 255:
        raise Violation("amqp:session:errant-link", "the handle is higher than the session's handle-max")
    address = _address(asked.source if asked.role else asked.target)

    def answer(outcome: Value) -> None:
        if isinstance(outcome, Refusal):
            _refuse(session, asked, outcome)
        else:
            _welcome(session, asked, outcome)

    def detach(fault: Fault) -> None:
        _refuse(session, asked, fault.refusal())

    if address.startswith("$cbs"):
        answer(_node_link(session, asked, address))
        return
    entity = address.removesuffix(MANAGEMENT)
    session.connection.perform(Point.ATTACH, entity, lambda: _link(session, asked, address), answer, detach)


def _address(terminus: Value) -> str:
    """The path that a source or target names."""
    fields = terminus.value if isinstance(terminus, Described) and isinstance(terminus.value, list) else []
    return path_of(fields[0]) if fields and isinstance(fields[0], str) else ""


def _link(session: AttachingSession, asked: frames.Attach, address: str) -> Incoming | Outgoing:
    if address.endswith(MANAGEMENT):
        return _node_link(session, asked, address)
    queue = _queue(session, address)
    status = queue.description.status
    if asked.role:
        if _filters(asked.source):
            raise NotAllowed(f"queue '{queue.name}' has no sessions")
        if status in {QueueStatus.DISABLED, QueueStatus.RECEIVE_DISABLED}:
            raise EntityDisabled(f"messaging entity '{queue.name}' is currently {status.value}")
        return QueueReceiver(session, int(asked.handle), queue, locks=asked.snd_settle_mode != SETTLED)
    if queue.dead is None:
        raise NotAllowed("nothing can be sent to a dead-letter queue")
    if status in {QueueStatus.DISABLED, QueueStatus.SEND_DISABLED}:
        raise EntityDisabled(f"messaging entity '{queue.name}' is currently {status.value}")
    return QueueSender(session, int(asked.handle), queue)


def _node_link(session: AttachingSession, asked: frames.Attach, address: str) -> Incoming | Outgoing:
    node: Node
    if address.startswith("$cbs"):
        node = Cbs(session.connection)
    else:
        node = Management(session.connection.service, _queue(session, address.removesuffix(MANAGEMENT), address))
    if not asked.role:
        return RequestLink(session, int(asked.handle), address, node)
    fields = asked.target.value if isinstance(asked.target, Described) else []
    reply_address = fields[0] if fields and isinstance(fields[0], str) else None
    return ResponseLink(session, int(asked.handle), node.entity, address, reply_address)


def _queue(session: AttachingSession, entity: str, address: str | None = None) -> Queue:
    """The queue; a token for `address`, where it isn't the entity's own, is enough."""
    connection = session.connection
    if not connection.may_use(address or entity):
        raise _Unauthorized(f"Unauthorized access. 'Send' or 'Listen' claim(s) are required for '{entity}'.")
    queue = connection.service.find(entity) if entity else None
    if queue is None:
        raise _NotFound(f"The messaging entity '{entity}' could not be found.")
    return queue


def _filters(source: Value) -> bool:
    """Whether the client asks for a session."""
    fields = source.value if isinstance(source, Described) and isinstance(source.value, list) else []
    wanted = fields[7] if len(fields) > 7 else None
    return isinstance(wanted, dict) and any(str(key) == SESSION_FILTER for key in wanted)


def _welcome(session: AttachingSession, asked: frames.Attach, link: Incoming | Outgoing) -> None:
    session.add(link)
    limit = ULong(link.max_bytes) if isinstance(link, Incoming) else ULong(0)
    _reply(session, asked, asked.source, asked.target, limit)
    if isinstance(link, Incoming):
        link.grant()


def _refuse(session: AttachingSession, asked: frames.Attach, refusal: Refusal) -> None:
    """The link is answered without our own terminus, which says that a detach follows."""
    source, target = (None, asked.target) if asked.role else (asked.source, None)
    _reply(session, asked, source, target, None)
    session.refuse(int(asked.handle), refusal.condition, str(refusal))


def _reply(session: AttachingSession, asked: frames.Attach, source: Value, target: Value, limit: ULong | None) -> None:
    properties = None
    if limit and not asked.role:
        properties = {Symbol("com.microsoft:max-message-batch-size"): UInt(limit)}
    session.send(
        frames.Attach(
            name=asked.name,
            handle=UInt(asked.handle),
            role=not asked.role,
            snd_settle_mode=UByte(2 if asked.snd_settle_mode is None else asked.snd_settle_mode),
            rcv_settle_mode=UByte(0 if asked.rcv_settle_mode is None else asked.rcv_settle_mode),
            source=source,
            target=target,
            initial_delivery_count=UInt(0) if asked.role else None,
            max_message_size=limit or None,
            properties=properties,
        )
    )
