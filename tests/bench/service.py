"""A `broker up` of one's own, for figures that need a running service."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker.domain.errors import BrokerError
from broker.sdk.http import Client

__all__ = ["running_service"]

_START_SECONDS = 30.0
_STOP_SECONDS = 15.0


@contextmanager
def running_service(data: Path, catalog: Path) -> Iterator[tuple[subprocess.Popen[bytes], Client]]:
    """The service on a free port, and a client of it; stopped with SIGTERM at the end."""
    command = [sys.executable, "-m", "broker", "up", "--data", str(data), "--catalog", str(catalog), "--port", "0"]
    process = subprocess.Popen([*command, "--log-level", "warning"], stdout=subprocess.DEVNULL)
    try:
        with _client(data, process) as client:
            yield process, client
    finally:
        process.terminate()
        process.wait(_STOP_SECONDS)


def _client(data: Path, process: subprocess.Popen[bytes]) -> Client:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            client = Client.of_folder(data)
            client.lanes()
        except BrokerError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return client
