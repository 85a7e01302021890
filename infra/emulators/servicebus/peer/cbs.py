"""`$cbs`: a client shows the token for an entity before it attaches there."""

from __future__ import annotations

from infra.emulators.servicebus.faults import Point
from infra.emulators.servicebus.peer.ports import ConnectionPort
from infra.emulators.servicebus.peer.requests import Answer, Node, Request
from infra.emulators.servicebus.queues.refusals import ArgumentError, Refusal
from infra.emulators.servicebus.tokens import RefusedToken, check_token
from infra.emulators.servicebus.wire.values import Int

__all__ = ["Cbs"]


class _Unauthorized(Refusal):
    status = 401


class Cbs(Node):
    """Takes tokens for one connection. What clients call a token's type isn't looked at: they say "jwt" of SAS too."""

    point = Point.TOKEN
    entity = ""

    def __init__(self, connection: ConnectionPort) -> None:
        self._connection = connection

    def answer(self, request: Request) -> Answer:
        if request.operation != "put-token":
            raise ArgumentError(f"$cbs has no operation '{request.operation}'")
        if not isinstance(request.body, str | bytes) or not isinstance(request.properties.get("name"), str):
            raise ArgumentError("put-token needs a token for its body and the entity's address as 'name'")
        token = request.body.decode(errors="replace") if isinstance(request.body, bytes) else request.body
        service = self._connection.service
        try:
            grant = check_token(token, service.keys, request.properties["name"], service.clock.now_ms())
        except RefusedToken as error:
            raise _Unauthorized(str(error)) from error
        self._connection.allow(grant)
        return Answer({"status-code": Int(202), "status-description": "Accepted"}, None)

    def refused(self, refusal: Refusal) -> Answer:
        return Answer({"status-code": Int(refusal.status), "status-description": str(refusal)}, None)
