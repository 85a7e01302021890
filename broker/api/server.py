"""The HTTP door itself: a socket, a token, and uvicorn in a thread of its own."""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path

import uvicorn

from broker.api.gate import Gate
from broker.api.threads import in_lease_thread
from broker.domain.errors import BrokerError
from broker.keys import write_secret_once

__all__ = ["Door", "listen", "load_or_create_token"]

_START_SECONDS = 10.0
_GRACE_SECONDS = 1
_BACKLOG = 1_024
_LEASE_SECONDS_MAX = 5.0
"""After so long a worker gives up its question."""

_LOOK_SECONDS = 0.25


def listen(host: str, port: int) -> socket.socket:
    """Take the address, before anything else is started. Raises BrokerError when it can't be had."""
    if not host:  # to a socket that means every address of the machine
        raise BrokerError("can't listen on no address: name one with --host, such as 127.0.0.1, or 0.0.0.0 for all")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
    except (OSError, OverflowError) as error:
        taken.close()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BrokerError(f"can't listen on {host}:{port}: {reason.lower()}; choose another with --port") from None
    return taken


_TOKEN_CHARS_MIN = 20


def load_or_create_token(data: Path) -> str:
    """The bearer token of this data folder, made on first use, readable by its owner alone."""
    path = data / "token"
    try:
        if not path.exists():
            write_secret_once(path, f"ib_{secrets.token_urlsafe(32)}\n")
        kept = path.read_text().strip()
    except OSError as error:
        raise BrokerError(f"can't read the token {path}: {error.strerror}") from None
    if len(kept) < _TOKEN_CHARS_MIN:
        raise BrokerError(f"the token in {path} is shorter than {_TOKEN_CHARS_MIN} characters: remove the file")
    return kept


class Door:
    """Serves the application on a socket until stopped."""

    def __init__(self, app: Gate, taken: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            backlog=_BACKLOG,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        self._server = uvicorn.Server(config)
        self._socket = taken
        self._began = self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = threading.Event()

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def is_stopping(self) -> bool:
        """Whether it was stopped, so that its thread may end."""
        return self._stopping

    def start(self) -> None:
        """Serve on a thread of its own; returns when requests are served."""
        threading.Thread(target=self.run, name="door", daemon=True).start()
        self.wait_until_open()

    def run(self) -> None:
        """Serve, on the thread that calls this, until stopped."""
        self._began = True
        try:
            with asyncio.Runner(loop_factory=self._server.config.get_loop_factory()) as runner:
                self._loop = runner.get_loop()
                runner.run(self._server.serve(sockets=[self._socket]))
        finally:
            self._ended.set()

    def wait_until_open(self) -> None:
        """Returns when requests are served. Raises BrokerError when that takes too long."""
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if self._ended.is_set() or time.monotonic() > deadline:
                raise BrokerError(f"the door at {self.url} did not open; the log says why")
            time.sleep(0.005)

    def as_a_worker(self, work: Callable[[], None], wait_seconds: float = _LEASE_SECONDS_MAX) -> None:
        """Run it the way that a worker's renewal goes. Raises BrokerError where that takes longer than workers wait."""
        assert self._loop is not None  # noqa: S101 (it was waited for)
        asked = asyncio.run_coroutine_threadsafe(in_lease_thread(work), self._loop)
        until = time.monotonic() + wait_seconds
        while not self._stopping:
            if wait([asked], _LOOK_SECONDS).done:
                asked.result()
                return
            if time.monotonic() > until:
                asked.cancel()
                raise BrokerError(f"the lease door has not answered for {wait_seconds:g} s")

    def stop(self) -> None:
        """Take no more requests, and let those under way end within about a second."""
        self._stopping = self._server.should_exit = True
        if self._began:
            self._ended.wait(_GRACE_SECONDS + 1)
        self._socket.close()
