"""What a link needs of its session, and a session of its connection. The parts below know these, never the parts above.

`Session` and `Connection` have more methods, for each other and for the server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from infra.emulators.servicebus.faults import Fault, Point
from infra.emulators.servicebus.service import Service
from infra.emulators.servicebus.tokens import Grant
from infra.emulators.servicebus.wire.values import Described, Value

__all__ = ["ConnectionPort", "LinkPort", "OutgoingPort", "SessionPort"]


class ConnectionPort(Protocol):
    """One AMQP connection, as its sessions and their links see it."""

    service: Service
    peer_max_frame_bytes: int

    def send(self, performative: Value, channel: int = 0, payload: bytes = b"") -> None:
        """Write a frame, with what else is written now."""

    def is_congested(self) -> bool:
        """Whether the peer reads slower than we write."""

    def may_use(self, path: str) -> bool:
        """Whether a valid token covers the entity."""

    def allow(self, grant: Grant) -> None:
        """Take a token's grant."""

    def perform(
        self,
        point: Point,
        entity: str,
        action: Callable[[], Value],
        answer: Callable[[Value], None],
        detach: Callable[[Fault], None],
    ) -> None:
        """Do it and answer with what it returned or the Refusal it raised, unless a fault is in the way."""


class LinkPort(Protocol):
    """A link, as its session sees it whichever way it carries messages."""

    handle: int
    entity: str
    address: str

    def flow_fields(self) -> tuple[Value, ...]:
        """Its part of a flow frame."""

    def dropped(self) -> None:
        """The link is gone."""


class OutgoingPort(LinkPort, Protocol):
    """One on which the client receives."""

    def settle(self, delivery_id: int, token: Value, state: Value, *, settled: bool) -> None:
        """The client says what became of a delivery."""


class SessionPort(Protocol):
    """One session, as its links see it."""

    @property
    def connection(self) -> ConnectionPort: ...

    @property
    def links(self) -> Mapping[int, LinkPort]:
        """The links attached now, by handle."""

    def send(self, performative: Value) -> None:
        """Write a frame."""

    def send_flow(self, link: LinkPort | None) -> None:
        """Write our windows, and a link's credit where there is a link."""

    def has_window(self) -> bool:
        """Whether a transfer can be written now."""

    def transfer(self, link: OutgoingPort, tag: bytes, data: bytes, token: Value, *, settled: bool) -> None:
        """Send a message."""

    def accept(self, delivery_id: int) -> None:
        """Settle an incoming delivery well."""

    def settle(self, delivery_id: int, state: Described) -> None:
        """Settle an incoming delivery with this state."""

    def confirm(self, delivery_id: int, state: Value) -> None:
        """Our half of a settlement that the client began."""

    def detach(self, link: LinkPort, condition: str, description: str) -> None:
        """Close a link with an error."""
