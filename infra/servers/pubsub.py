"""A Pub/Sub emulator of one's own: Google's, which keeps everything in memory and forgets it when it ends."""

from __future__ import annotations

import socket

from infra.servers.process import PrivateServer, find_program, free_port

__all__ = ["PrivatePubSub"]

# Where Google's packages for Debian and its archive for a home folder put it.
FOLDERS = (
    "/usr/lib/google-cloud-sdk/platform/pubsub-emulator/bin",
    "/opt/google-cloud-sdk/platform/pubsub-emulator/bin",
    "/usr/local/google-cloud-sdk/platform/pubsub-emulator/bin",
)


class PrivatePubSub(PrivateServer):
    """Google's emulator on loopback. `endpoint` is its host and port; any project name may be used there."""

    name = "pubsub"

    def __init__(self) -> None:
        self._program = find_program("Pub/Sub emulator", ["cloud-pubsub-emulator"], FOLDERS)
        find_program("Java", ["java"])
        super().__init__()
        self.port = free_port()
        self.endpoint = f"127.0.0.1:{self.port}"
        self.url = self.url_of("private")

    def url_of(self, project: str) -> str:
        """The bus URL of a project."""
        return f"lanepubsub://{project}/?endpoint={self.endpoint}"

    def command(self) -> list[str]:
        return [self._program, "--host=127.0.0.1", f"--port={self.port}"]

    def environment(self) -> dict[str, str]:
        return {"JAVA_OPTS": "-Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1"}

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return b" 200 " in connection.recv(64)
        except OSError:
            return False
