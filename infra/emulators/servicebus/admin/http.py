"""Just enough of HTTP/1.1 for administration and control: requests in, whole responses out, connections kept alive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

__all__ = ["HttpConnection", "HttpRequest", "HttpResponse"]

HEAD_BYTES_MAX = 64 << 10
BODY_BYTES_MAX = 8 << 20


class HttpRequest(NamedTuple):
    """Header names are in lower case; `path` is decoded."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


class HttpResponse(NamedTuple):
    status: int
    body: bytes = b""
    content_type: str = "application/atom+xml;type=entry;charset=utf-8"


class _Malformed(Exception):
    """What came isn't a request that we understand."""


class HttpConnection:
    """Fed with bytes. `answer` is called for each request and answers through the callback, now or later."""

    def __init__(
        self, transport: asyncio.Transport, answer: Callable[[HttpRequest, Callable[[HttpResponse | None], None]], None]
    ) -> None:
        self._transport = transport
        self._answer = answer
        self._data = bytearray()
        self._busy = False
        self._invited = False

    def feed(self, data: bytes) -> None:
        self._data += data
        self._work()

    def lost(self) -> None:
        self._data.clear()

    def drained(self) -> None:
        """Responses are short; nothing waits."""

    def _work(self) -> None:
        while not self._busy and not self._transport.is_closing():
            try:
                request = self._next()
            except _Malformed as error:
                self._respond(HttpResponse(400, str(error).encode(), "text/plain"), keep=False)
                return
            if request is None:
                return
            self._busy = True
            keep = request.headers.get("connection", "").lower() != "close"
            self._answer(request, lambda response, keep=keep: self._on_answer(response, keep=keep))  # type: ignore[misc]  # mypy can't see the default

    def _on_answer(self, response: HttpResponse | None, *, keep: bool) -> None:
        """None cuts the connection."""
        self._busy = False
        if response is None:
            self._transport.abort()
            return
        self._respond(response, keep=keep)
        asyncio.get_running_loop().call_soon(self._work)

    def _respond(self, response: HttpResponse, *, keep: bool) -> None:
        head = (
            f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}\r\n"
            f"Content-Type: {response.content_type}\r\nContent-Length: {len(response.body)}\r\n"
            f"Server: servicebus-emulator\r\nConnection: {'keep-alive' if keep else 'close'}\r\n\r\n"
        )
        self._transport.write(head.encode() + response.body)
        if not keep:
            self._transport.close()

    def _next(self) -> HttpRequest | None:
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            if len(self._data) > HEAD_BYTES_MAX:
                raise _Malformed("the request's head is too long")
            return None
        lines = self._data[:end].decode("latin-1").split("\r\n")
        try:
            method, target, version = lines[0].split(" ")
        except ValueError as error:
            raise _Malformed("no request line") from error
        if not version.startswith("HTTP/1."):
            raise _Malformed(f"no {version} is spoken here")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        if headers.get("expect", "").lower() == "100-continue" and not self._invited:
            self._invited = True
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        taken = self._body(end + 4, headers)
        if taken is None:
            return None
        body, after = taken
        del self._data[:after]
        self._invited = False
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        return HttpRequest(method.upper(), unquote(parts.path), query, headers, body)

    def _body(self, at: int, headers: dict[str, str]) -> tuple[bytes, int] | None:
        """The body and where it ends, once it is there whole."""
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return self._chunks(at)
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > BODY_BYTES_MAX:
            raise _Malformed(f"a body of {length} bytes")
        end = at + int(length)
        return (bytes(self._data[at:end]), end) if len(self._data) >= end else None

    def _chunks(self, at: int) -> tuple[bytes, int] | None:
        body = b""
        while (line := self._data.find(b"\r\n", at)) >= 0:
            try:
                size = int(self._data[at:line].split(b";")[0], 16)
            except ValueError as error:
                raise _Malformed("a chunk without a size") from error
            end = line + 2 + size
            if len(body) + size > BODY_BYTES_MAX:
                raise _Malformed("a body that is too long")
            if len(self._data) < end + 2:
                return None
            body += self._data[line + 2 : end]
            at = end + 2
            if size == 0:
                return body, at
        return None
