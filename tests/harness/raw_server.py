"""A server of plain sockets, for what no HTTP library would send: each connection is one function in one thread."""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Self

__all__ = ["CHAT", "Connection", "RawServer", "Request", "reply"]

CHAT = json.dumps(
    {
        "id": "chatcmpl-1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
    }
).encode()

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class Request(NamedTuple):
    """`head` in small letters."""

    head: str
    body: bytes


def reply(body: bytes = CHAT, *, status: int = 200, headers: str = "") -> bytes:
    """With its length; `headers` are whole lines."""
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body


class Connection:
    """One that was accepted. `number` counts from 0."""

    def __init__(self, peer: socket.socket, number: int, server: RawServer) -> None:
        self.socket, self.number = peer, number
        self._server = server

    def read_head(self) -> str:
        """Not a byte further. EOFError where the other side is gone."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (byte := self.socket.recv(1)):
                raise EOFError
            head += byte
        return head.decode().lower()

    def read(self) -> Request:
        """A whole request. EOFError where the other side is gone."""
        head = self.read_head()
        length = _LENGTH.search(head.encode())
        whole, body = int(length[1]) if length else 0, bytearray()
        while len(body) < whole:
            if not (more := self.socket.recv(1_000_000)):
                raise EOFError
            body += more
        self._server.requests.append(Request(head, bytes(body)))
        return self._server.requests[-1]

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_and_close(self, data: bytes) -> None:
        """The end travels with the last byte, so that whoever has read that can know of it."""
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        self.socket.sendall(data)
        self.socket.close()

    def wait_for_end(self) -> None:
        """Until the other side has closed, whatever it sends before."""
        with suppress(OSError):
            while self.socket.recv(1_000_000):
                pass
        self._server.hung_up.set()


class RawServer:
    """Listens on loopback while it is entered. `hung_up` is set once a connection saw its other side close."""

    def __init__(self, converse: Callable[[Connection], None], context: ssl.SSLContext | None = None) -> None:
        self.requests: list[Request] = []
        self.connections: list[Connection] = []
        self.hung_up = threading.Event()
        self._converse, self._context = converse, context
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._socket.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # or else the thread stays in `accept`
        self._socket.close()
        for one in self.connections:
            with suppress(OSError):
                one.socket.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        return f"{'https' if self._context else 'http'}://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                peer, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=[peer, len(self.connections)], daemon=True).start()

    def _serve(self, peer: socket.socket, number: int) -> None:
        try:
            if self._context:
                peer = self._context.wrap_socket(peer, server_side=True)
            connection = Connection(peer, number, self)
            self.connections.append(connection)
            self._converse(connection)
        except (OSError, EOFError):
            self.hung_up.set()
        with suppress(OSError):
            peer.close()
