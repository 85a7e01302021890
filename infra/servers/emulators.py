"""This project's emulators of clouds' queues, each as a process of its own that keeps its messages in a journal."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from infra.emulators.ociqueue import COMPARTMENT
from infra.emulators.servicebus import KEY, KEY_NAME
from infra.servers.process import PrivateServer, free_port

__all__ = ["PrivateOciQueue", "PrivateServiceBus"]

ROOT = Path(__file__).parents[2]


class _Emulator(PrivateServer):
    """What was confirmed is there again after a kill and a start."""

    options: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()

    def command(self) -> list[str]:
        journal = ["--journal", str(self.folder / "journal")]
        return [sys.executable, "-m", f"infra.emulators.{self.name}", "--port", str(self.port), *journal, *self.options]

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(ROOT)}

    def answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True


class PrivateServiceBus(_Emulator):
    """Azure Service Bus, as `infra.emulators.servicebus` plays it, without TLS."""

    name = "servicebus"
    options = ("--no-tls",)

    def __init__(self) -> None:
        super().__init__()
        self.url = f"laneasb://{KEY_NAME}:{KEY}@127.0.0.1:{self.port}/?emulator=true"


class PrivateOciQueue(_Emulator):
    """OCI Queue, as `infra.emulators.ociqueue` plays it."""

    name = "ociqueue"

    def __init__(self) -> None:
        super().__init__()
        self.url = f"laneoci://127.0.0.1:{self.port}/{COMPARTMENT}?emulator=true"
