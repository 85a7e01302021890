"""What stands before several doors: each connection goes to the next of them that is up, as behind one address."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Sequence
from typing import Self

__all__ = ["Balancer"]

_CHUNK_BYTES = 65_536


class Balancer:
    """Listens on `port` of 127.0.0.1; carries to the first of `ports` that accepts, from another one on each time."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = list(ports)
        self._turn = itertools.count()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="balancer", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = self._connect()
            if server is None:
                client.close()
                continue
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=_carry, args=(source, target), name="balancer-link", daemon=True).start()

    def _connect(self) -> socket.socket | None:
        first = next(self._turn) % len(self._ports)
        for port in self._ports[first:] + self._ports[:first]:
            with contextlib.suppress(OSError):
                server = socket.create_connection(("127.0.0.1", port), 2)
                server.settimeout(None)
                return server
        return None


def _carry(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(_CHUNK_BYTES):
            target.sendall(chunk)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
