"""A Redis of a test's own."""

from __future__ import annotations

import socket

from tests.services.process import PrivateServer, find_program, free_port

__all__ = ["PrivateRedis"]


class PrivateRedis(PrivateServer):
    """Keeps an append-only file, written with each command, so that a kill loses nothing that was confirmed.

    `settings` are further command line options of redis-server, such as `{"maxmemory": "10mb"}`.
    """

    name = "redis"

    def __init__(self, settings: dict[str, str] | None = None) -> None:
        self._program = find_program("Redis", ["redis-server"])
        super().__init__()
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._settings = settings or {}

    def command(self) -> list[str]:
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
            **self._settings,
        }
        return [self._program, *(word for name, value in settings.items() for word in (f"--{name}", value))]

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False
