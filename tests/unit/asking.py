"""Asks the door's application as a server would, without a socket; and every route that it has."""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec

from broker.api.gate import Gate


def ask(app: Gate, method: str, path: str, body=b"", *, token="", host="127.0.0.1:8470", headers=()):
    """The status and the whole body of the answer."""
    given = [(b"host", host.encode())] if host else []
    given += [(b"authorization", f"Bearer {token}".encode())] if token else []
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [*given, *headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8470),
    }
    return asyncio.run(_ask(app, scope, body))


async def _ask(app, scope, body):
    incoming = deque([{"type": "http.request", "body": body, "more_body": False}])
    sent = []

    async def receive():
        return incoming.popleft() if incoming else await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], content


def refusal(answer):
    """The status and the error's code of an answer that must be a refusal in the door's one shape."""
    status, content = answer
    error = msgspec.json.decode(content)["error"]
    assert error.keys() == {"code", "message", "field"}
    assert error["message"]
    assert "\n" not in error["message"]
    return status, error["code"]


def all_routes(app: Gate) -> set[tuple[str, str]]:
    """What the gate serves itself, signed or not, and what the framework serves, by method and path."""
    routes = {*app.direct, *app.signed}
    for route in app._app.routes:
        for handler in route.route_handlers:
            routes |= {(method, route.path_format) for method in handler.http_methods - {"OPTIONS"}}
    return routes
