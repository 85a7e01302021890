"""One session: its windows, its links, and the deliveries that wait for a word."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from infra.emulators.servicebus.peer.attaching import attach
from infra.emulators.servicebus.peer.links import Incoming, Outgoing
from infra.emulators.servicebus.peer.ports import ConnectionPort, LinkPort, OutgoingPort
from infra.emulators.servicebus.peer.violation import Violation
from infra.emulators.servicebus.wire import frames
from infra.emulators.servicebus.wire.values import Described, UInt, ULong, UShort, Value

__all__ = ["Session"]

INCOMING_WINDOW = 5_000
HANDLE_MAX = 255
ACCEPTED = Described(ULong(frames.ACCEPTED), [])


class _Sent(NamedTuple):
    """A delivery that the client hasn't settled."""

    link: OutgoingPort
    token: Value


class Session:
    """Made by the client's begin, which it answers at once."""

    def __init__(self, connection: ConnectionPort, channel: int, begin: frames.Begin) -> None:
        if begin.next_outgoing_id is None or begin.incoming_window is None:
            raise Violation("amqp:invalid-field", "a begin needs its ids and windows")
        self.connection = connection
        self.channel = channel
        self.ended = False
        self.links: dict[int, Incoming | Outgoing] = {}
        self.unsettled: dict[int, _Sent] = {}
        self._next_incoming_id = int(begin.next_outgoing_id)
        self._incoming_window = INCOMING_WINDOW
        self._next_outgoing_id = self._next_delivery_id = connection.service.first_delivery_id
        self._peer_window = int(begin.incoming_window)
        self._blocked: deque[tuple[frames.Transfer, bytes]] = deque()
        self._accepted: list[int] = []
        self._leaving: set[int] = set()  # handles that we detached and the client hasn't yet
        mine = frames.Begin(
            *(UShort(channel), UInt(self._next_outgoing_id), UInt(INCOMING_WINDOW), UInt(INCOMING_WINDOW)),
            UInt(HANDLE_MAX),
        )
        connection.send(mine, channel)

    def handle(self, performative: Value, payload: bytes) -> None:
        match performative:
            case frames.Transfer():
                self._on_transfer(performative, payload)
            case frames.Disposition():
                self._on_disposition(performative)
            case frames.Flow():
                self._on_flow(performative)
            case frames.Attach():
                attach(self, performative)
            case frames.Detach():
                self._on_detach(performative)
            case _:
                raise Violation("amqp:not-implemented", f"no {type(performative).__name__} is expected here")

    def send(self, performative: Value) -> None:
        self.connection.send(performative, self.channel)

    def end(self, condition: str, description: str) -> None:
        """End it with an error; the client's end is still to come."""
        self.drop()
        self.ended = True
        self.send(frames.End(frames.error_of(condition, description)))

    def drop(self) -> None:
        for link in self.links.values():
            link.dropped()
        self.links.clear()
        self.unsettled.clear()
        self._blocked.clear()

    def _link(self, handle: Value) -> Incoming | Outgoing:
        link = self.links.get(handle)
        if link is None:
            raise Violation("amqp:session:unattached-handle", f"no link has the handle {handle}")
        return link

    def add(self, link: Incoming | Outgoing) -> None:
        """The link is attached."""
        self.links[link.handle] = link

    def refuse(self, handle: int, condition: str, description: str) -> None:
        """Detach a link that was only just answered."""
        self._leaving.add(handle)
        self.send(frames.Detach(UInt(handle), True, frames.error_of(condition, description)))

    # Windows and credit.

    def _on_flow(self, flow: frames.Flow) -> None:
        if flow.incoming_window is not None:
            seen = self._next_outgoing_id if flow.next_incoming_id is None else int(flow.next_incoming_id)
            self._peer_window = (seen + int(flow.incoming_window) - self._next_outgoing_id) & 0xFFFFFFFF
            self._send_blocked()
            self.resume()
        if flow.handle is not None and flow.handle not in self._leaving:
            link = self._link(flow.handle)
            if isinstance(link, Outgoing):
                link.on_flow(flow)
            elif isinstance(link, Incoming) and flow.echo:
                self.send_flow(link)
        elif flow.echo:
            self.send_flow(None)

    def send_flow(self, link: LinkPort | None) -> None:
        """Tell our windows, and a link's credit where there is a link."""
        self._incoming_window = INCOMING_WINDOW
        fields = () if link is None else link.flow_fields()
        self.send(
            frames.Flow(
                *(UInt(self._next_incoming_id), UInt(INCOMING_WINDOW)),
                *(UInt(self._next_outgoing_id), UInt(INCOMING_WINDOW)),
                *fields,
            )
        )

    def has_window(self) -> bool:
        return self._peer_window > 0 and not self._blocked and not self.connection.is_congested()

    # What the client sends.

    def _on_transfer(self, transfer: frames.Transfer, payload: bytes) -> None:
        self._next_incoming_id = (self._next_incoming_id + 1) & 0xFFFFFFFF
        self._incoming_window -= 1
        if transfer.handle in self._leaving:
            return  # it was under way when we detached; taking it would double the client's second try
        link = self._link(transfer.handle)
        if not isinstance(link, Incoming):
            raise Violation("amqp:not-allowed", "a transfer on a link that receives")
        link.on_transfer(transfer, payload)
        if self._incoming_window < INCOMING_WINDOW // 2:
            self.send_flow(None)

    def accept(self, delivery_id: int) -> None:
        """Settle an incoming delivery well; neighbours go out together."""
        self._accepted.append(delivery_id)

    def settle(self, delivery_id: int, state: Described) -> None:
        self.settle_up()
        self.send(frames.Disposition(True, UInt(delivery_id), None, True, state))

    def settle_up(self) -> None:
        """Send what was accepted since, as ranges."""
        accepted, self._accepted = self._accepted, []
        at = 0
        while at < len(accepted):
            first = last = accepted[at]
            while at + 1 < len(accepted) and accepted[at + 1] == last + 1:
                at, last = at + 1, last + 1
            self.send(frames.Disposition(True, UInt(first), None if last == first else UInt(last), True, ACCEPTED))
            at += 1

    # What we send.

    def transfer(self, link: OutgoingPort, tag: bytes, data: bytes, token: Value, *, settled: bool) -> None:
        """Send a message in as many frames as it takes; those beyond the client's window wait."""
        delivery_id = self._next_delivery_id
        self._next_delivery_id = (delivery_id + 1) & 0xFFFFFFFF
        if not settled:
            self.unsettled[delivery_id] = _Sent(link, token)
        room = self.connection.peer_max_frame_bytes - 64  # more than a transfer's own fields take
        for at in range(0, max(len(data), 1), room):
            more = at + room < len(data)
            head = frames.Transfer(UInt(link.handle), more=more)
            if at == 0:
                head = frames.Transfer(UInt(link.handle), UInt(delivery_id), tag, UInt(0), settled, more)
            self._blocked.append((head, data[at : at + room]))
        self._send_blocked()

    def _send_blocked(self) -> None:
        while self._blocked and self._peer_window > 0:
            performative, payload = self._blocked.popleft()
            self._peer_window -= 1
            self._next_outgoing_id = (self._next_outgoing_id + 1) & 0xFFFFFFFF
            self.connection.send(performative, self.channel, payload)

    def resume(self) -> None:
        """There may be room again for messages that wait."""
        for link in self.links.values():
            if isinstance(link, Outgoing):
                link.resume()

    def _on_disposition(self, disposition: frames.Disposition) -> None:
        if disposition.role is False:
            return  # the client settles what it sent; we settled it before
        first = int(disposition.first or 0)
        last = first if disposition.last is None else int(disposition.last)
        span = range(first, last + 1)
        ids = span if len(span) <= len(self.unsettled) else sorted(each for each in self.unsettled if each in span)
        for delivery_id in ids:
            if (sent := self.unsettled.get(delivery_id)) is not None:
                if not disposition.settled and disposition.state is None:
                    continue
                if isinstance(disposition.state, Described) and disposition.state.descriptor == frames.RECEIVED:
                    continue
                del self.unsettled[delivery_id]
                sent.link.settle(delivery_id, sent.token, disposition.state, settled=bool(disposition.settled))

    def confirm(self, delivery_id: int, state: Value) -> None:
        """Our half of a settlement that the client began."""
        self.send(frames.Disposition(False, UInt(delivery_id), UInt(delivery_id), True, state))

    # Links that go.

    def _on_detach(self, detach: frames.Detach) -> None:
        if detach.handle in self._leaving:
            self._leaving.discard(detach.handle)  # the answer to our own
            return
        link = self._link(detach.handle)
        del self.links[link.handle]
        self._forget(link)
        self.send(frames.Detach(UInt(link.handle), bool(detach.closed)))

    def _forget(self, link: LinkPort) -> None:
        link.dropped()
        for delivery_id in [each for each, sent in self.unsettled.items() if sent.link is link]:
            del self.unsettled[delivery_id]
        self._blocked = deque(each for each in self._blocked if each[0].handle != link.handle)

    def detach(self, link: LinkPort, condition: str, description: str) -> None:
        """Close a link with an error; what the client still sends there is dropped."""
        if self.links.pop(link.handle, None) is None:
            return
        self._leaving.add(link.handle)
        self._forget(link)
        self.settle_up()
        self.send(frames.Detach(UInt(link.handle), True, frames.error_of(condition, description)))

    def detach_links(self, entity: str, condition: str, description: str) -> int:
        chosen = [link for link in self.links.values() if entity in {"*", link.entity} or link.entity == entity.lower()]
        for link in chosen:
            self.detach(link, condition, description)
        return len(chosen)

    def detach_unauthorized(self) -> None:
        for link in list(self.links.values()):
            if link.entity and not self.connection.may_use(link.address):
                self.detach(link, "amqp:unauthorized-access", "ExpiredToken: The token has expired.")
