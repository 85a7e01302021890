"""As much of HTTP/1.1 as the SDK's clients speak: requests with a length, kept connections, JSON answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from infra.emulators.ociqueue.refusals import Refusal

__all__ = ["HttpRequest", "HttpResponse", "json_response", "read_request"]

BODY_BYTES_MAX = 8 << 20
HEADERS_MAX = 100


@dataclass(frozen=True)
class HttpRequest:
    """Header names are in small letters; `target` is as it was sent, which is what a signature covers."""

    method: str
    target: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body as a JSON object. Raises Refusal."""
        try:
            value = json.loads(self.body or b"{}")
        except ValueError as error:
            raise Refusal(400, "CannotParseRequest", f"the body is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise Refusal(400, "CannotParseRequest", "the body must be a JSON object")
        return value


@dataclass(frozen=True)
class HttpResponse:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def render(self) -> bytes:
        head = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        head += [f"{name}: {value}" for name, value in self.headers.items()]
        if self.body:
            head.append("content-type: application/json")
        head.append(f"content-length: {len(self.body)}")
        return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + self.body


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> HttpResponse:
    return HttpResponse(status, json.dumps(value).encode(), headers or {})


async def read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> HttpRequest | None:
    """The next request of a connection; None at its end, or where it makes no sense."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
        method, target, _ = line.split(" ")
        if len(lines) > HEADERS_MAX:
            return None
        headers = {name.strip().lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
        length = int(headers.get("content-length") or 0)
        if not 0 <= length <= BODY_BYTES_MAX:
            return None
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, OSError):
        return None
    parts = urlsplit(target)
    return HttpRequest(method, target, unquote(parts.path), dict(parse_qsl(parts.query)), headers, body)
