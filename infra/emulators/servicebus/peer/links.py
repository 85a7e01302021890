"""What both kinds of links have in common: credit, and deliveries that span frames.

`entity` is the queue that a link belongs to, `address` what its token must cover: the queue or its `$management`.
"""

from __future__ import annotations

from collections.abc import Callable

from infra.emulators.servicebus.peer.ports import SessionPort
from infra.emulators.servicebus.peer.violation import Violation
from infra.emulators.servicebus.wire import frames
from infra.emulators.servicebus.wire.values import UInt, Value

__all__ = ["Incoming", "Outgoing"]

CREDIT = 1_000


class Incoming:
    """A link on which the client sends: gathers whole deliveries and hands them on.

    A delivery beyond `max_bytes` is counted and dropped as it comes; `on_delivery` then gets its size and no data.
    """

    def __init__(self, session: SessionPort, handle: int, entity: str, max_bytes: int) -> None:
        self.session = session
        self.handle = handle
        self.entity = entity
        self.address = entity
        self.max_bytes = max_bytes
        self.on_delivery: Callable[[int, int, bytes | None, int, bool], None] | None = None
        self._credit = 0
        self._delivery_count = 0
        self._first: frames.Transfer | None = None
        self._parts: list[bytes] = []
        self._size = 0

    def grant(self) -> None:
        self._credit = CREDIT
        self.session.send_flow(self)

    def flow_fields(self) -> tuple[Value, ...]:
        return (UInt(self.handle), UInt(self._delivery_count), UInt(self._credit))

    def dropped(self) -> None:
        """The link is gone."""
        self._parts.clear()

    def on_transfer(self, transfer: frames.Transfer, payload: bytes) -> None:
        if self._first is None:
            if transfer.delivery_id is None or transfer.delivery_tag is None:
                raise Violation("amqp:invalid-field", "the first frame of a delivery needs an id and a tag")
            if self._credit <= 0:
                raise Violation("amqp:link:transfer-limit-exceeded", "a transfer without credit")
            self._first = transfer
        elif transfer.delivery_id not in {None, self._first.delivery_id}:
            raise Violation("amqp:not-allowed", "a new delivery before the last one ended")
        self._size += len(payload)
        if self._size <= self.max_bytes:
            self._parts.append(payload)
        else:
            self._parts.clear()
        if transfer.more and not transfer.aborted:
            return
        first, data, size = self._first, b"".join(self._parts), self._size
        self._first, self._parts, self._size = None, [], 0
        self._credit -= 1
        self._delivery_count = (self._delivery_count + 1) & 0xFFFFFFFF
        if not transfer.aborted and self.on_delivery is not None:
            settled = bool(first.settled or transfer.settled)
            whole = data if size <= self.max_bytes else None
            self.on_delivery(int(first.delivery_id), int(first.message_format or 0), whole, size, settled)
        if self._credit <= CREDIT // 2 and self.session.links.get(self.handle) is self:
            self.grant()


class Outgoing:
    """A link on which the client receives."""

    def __init__(self, session: SessionPort, handle: int, entity: str) -> None:
        self.session = session
        self.handle = handle
        self.entity = entity
        self.address = entity
        self.credit = 0
        self.draining = False
        self._delivery_count = 0

    def flow_fields(self) -> tuple[Value, ...]:
        return (
            *(UInt(self.handle), UInt(self._delivery_count), UInt(self.credit)),
            *(UInt(0), self.draining),
        )

    def on_flow(self, flow: frames.Flow) -> None:
        """The client's credit counts from the delivery count that it knew."""
        known = 0 if flow.delivery_count is None else int(flow.delivery_count)
        self.credit = max(known + int(flow.link_credit or 0) - self._delivery_count, 0)
        self.draining = bool(flow.drain)
        self.resume()
        if self.draining:
            self.drain()
        elif flow.echo:
            self.session.send_flow(self)

    def drain(self) -> None:
        """Nothing more is there to be sent: use the credit up and say so."""
        self._delivery_count = (self._delivery_count + self.credit) & 0xFFFFFFFF
        self.credit = 0
        self.session.send_flow(self)
        self.draining = False

    def spend(self) -> None:
        self.credit -= 1
        self._delivery_count = (self._delivery_count + 1) & 0xFFFFFFFF

    def resume(self) -> None:
        """There may be room now for what waits."""

    def settle(
        self,
        delivery_id: int,
        token: Value,  # noqa: ARG002 (for links that lock)
        state: Value,
        *,
        settled: bool,
    ) -> None:
        """The client says what became of a delivery."""
        if not settled:
            self.session.confirm(delivery_id, state)

    def dropped(self) -> None:
        """The link is gone."""
