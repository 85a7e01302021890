"""The gate: every request passes it. Its own names only, the bearer token, and nothing else gets anywhere.

What isn't the health check, nor signed by a lane, needs the token, known route or not; what a route then
needs is its scope.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from enum import StrEnum
from typing import Any

import structlog

from broker.api.errors import Refused, error_body, passing

__all__ = ["PUBLIC", "Gate", "Receive", "Scope", "Send", "Wire", "answer"]

Wire = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]

PUBLIC = ("GET", "/v1/health")
"""The one thing that anyone on this machine may ask."""

_log = structlog.get_logger(__name__)


class Scope(StrEnum):
    """What a token may do; every route names one."""

    HEALTH = "health"
    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    BATCHES_READ = "batches:read"
    BATCHES_WRITE = "batches:write"
    LANES_READ = "lanes:read"
    LANES_WRITE = "lanes:write"
    LEDGER_READ = "ledger:read"


class Gate:
    """`direct` are routes that are served before the framework, for speed: by method and path, with their scope.

    `signed` are those that need no token, for what they are sent is signed, and they check that themselves.
    """

    def __init__(
        self,
        app: App,
        *,
        token: str,
        hosts: Collection[str],
        direct: Mapping[tuple[str, str], tuple[Scope, App]],
        signed: Mapping[tuple[str, str], App] = {},
    ) -> None:
        self._app = app
        self._authorization = f"Bearer {token}".encode()
        self._hosts = frozenset(hosts)
        self.direct = direct
        self.signed = signed

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 (ASGI's three untyped values)
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_host(scope)
            if signed := self.signed.get((scope["method"], scope["path"])):
                await signed(scope, receive, send)
                return
            granted = self._check(scope)
            scope["granted"] = granted
            needed, direct = self.direct.get((scope["method"], scope["path"]), (None, self._app))
            if needed is not None and needed not in granted:
                raise Refused(403, "forbidden", f"this token may not do that: it lacks the scope {needed}")
            await direct(scope, receive, send)
        except Refused as refused:
            await answer(send, refused.status, refused.body, refused.headers)
        except Exception as error:  # noqa: BLE001 (whatever a direct route did not foresee; the framework answers for its own)
            if put_off := passing(error):
                _log.warning("request_put_off", path=scope["path"], error=type(error).__name__)
                await answer(send, put_off.status, put_off.body, put_off.headers)
                return
            _log.exception("request_failed", path=scope["path"], method=scope["method"])
            await answer(send, 500, error_body("internal", "the broker failed on this request; its log says more"))

    def _check_host(self, scope: Wire) -> None:
        """A page in some browser, led here by a name of its own, has no business here."""
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
        if _without_port(host) not in self._hosts:
            known = ", ".join(sorted(self._hosts))
            raise Refused(403, "host_not_allowed", f"the Host header is {host[:80]!r}; this door is called {known}")

    def _check(self, scope: Wire) -> frozenset[Scope]:
        """The scopes that come with the request's token."""
        headers = dict(scope["headers"])
        given = headers.get(b"authorization", b"")
        if hmac.compare_digest(given, self._authorization):
            return frozenset(Scope)
        if (scope["method"], scope["path"]) == PUBLIC:
            return frozenset({Scope.HEALTH})
        fault = "is not this broker's" if given else "is missing"
        message = f"the bearer token {fault}: it stands in the file `token` of the data folder"
        raise Refused(401, "unauthorized", message)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


async def answer(
    send: Send,
    status: int,
    body: bytes,
    headers: dict[str, str] | None = None,
    content_type: bytes = b"application/json",
) -> None:
    """One whole answer, JSON where nothing else is said."""
    extra = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    length = (b"content-length", str(len(body)).encode())
    await send(
        {
            "type": "http.response.start",
            "status": int(status),
            "headers": [(b"content-type", content_type), length, *extra],
        }
    )
    await send({"type": "http.response.body", "body": body})
