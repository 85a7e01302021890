"""The gate: every request passes it. Its own names only, an identity by its token, and nothing else gets anywhere.

What isn't the health check, nor signed by a lane, needs the token, known route or not; what a route then
needs is its scope.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any

import structlog

from broker.api.errors import Refused, error_body, passing
from broker.api.routes import PUBLIC, SCOPES, moved_to, served_at
from broker.api.tokens import Tokens
from broker.domain.errors import named
from broker.domain.identity import Identity, Scope

__all__ = ["Gate", "Receive", "Send", "Wire", "answer", "require_scope"]

Wire = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]

_ANYONE = Identity(tenant="", subject="anyone", scopes=frozenset({Scope.HEALTH}))
_SIGNED = Identity(tenant="", subject="a lane, if its signature is good", scopes=frozenset({Scope.LEASES}))
_BEARER = b"Bearer "

_log = structlog.get_logger(__name__)


class Gate:
    """`direct` are routes that are served before the framework, for speed, by method and path.

    `signed` are those that need no token, for what they are sent is signed, and they check that themselves. All others
    find who asks as `identity` in the ASGI scope.
    """

    def __init__(
        self,
        app: App,
        *,
        tokens: Tokens,
        hosts: Collection[str],
        direct: Mapping[tuple[str, str], App],
        signed: Mapping[tuple[str, str], App] = {},
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._hosts = frozenset(hosts)
        self.direct = direct
        self.signed = signed

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 (ASGI's three untyped values)
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._route(scope, receive, send)
        except Refused as refused:
            await answer(send, refused.status, refused.body, refused.headers)
        except Exception as error:  # noqa: BLE001 (whatever a direct route did not foresee; the framework answers for its own)
            if put_off := passing(error):
                _log.warning("request_put_off", path=scope["path"], error=named(error))
                await answer(send, put_off.status, put_off.body, put_off.headers)
                return
            _log.exception("request_failed", path=scope["path"], method=scope["method"])
            await answer(send, 500, error_body("internal", "the broker failed on this request; its log says more"))

    async def _route(self, scope: Wire, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        self._check_host(headers.get(b"host", b""))
        method, asked = scope["method"], scope["path"]
        path = served_at(asked)
        if path != asked:
            scope.update(path=path, raw_path=path.encode())
        if signed := self.signed.get((method, path)):
            require_scope(_SIGNED, (method, path))
            await signed(scope, receive, send)
            return
        identity = self._identify(headers.get(b"authorization", b""), is_public=(method, path) == PUBLIC)
        scope["identity"] = identity
        if direct := self.direct.get((method, path)):
            require_scope(identity, (method, path))
            await direct(scope, receive, send)
            return
        if moved := moved_to(path):
            message = (
                f"there is no {method} {path[:200]}: the broker's own routes have moved, this one to {moved[:200]}"
            )
            raise Refused(404, "unknown_route", message)
        await self._app(scope, receive, send)

    def _check_host(self, given: bytes) -> None:
        """A page in some browser, led here by a name of its own, has no business here."""
        host = given.decode("latin-1").lower()
        if _without_port(host) not in self._hosts:
            known = ", ".join(sorted(self._hosts))
            raise Refused(403, "host_not_allowed", f"the Host header is {host[:80]!r}; this door is called {known}")

    def _identify(self, given: bytes, *, is_public: bool) -> Identity:
        """Whose token came with the request. Raises Refused where it is nobody's, and one is needed."""
        identity = self._tokens.find(given.removeprefix(_BEARER)) if given.startswith(_BEARER) else None
        if identity is not None:
            return identity
        if is_public:
            return _ANYONE
        fault = "is not this broker's" if given else "is missing"
        message = f"the bearer token {fault}: it stands in the file `token` of the data folder"
        raise Refused(401, "unauthorized", message)


def require_scope(identity: Identity, route: tuple[str, str]) -> None:
    """Raises Refused where the identity hasn't the route's scope, and for a route that has none."""
    needed = SCOPES.get(route)
    if needed is None or needed not in identity.scopes:
        raise Refused(403, "forbidden", f"this token may not do that: it lacks the scope {needed}")


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
