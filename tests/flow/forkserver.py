"""Commands as processes that start at once: forked from one that has loaded the broker and does nothing else.

`python -m broker` takes a second of CPU until the broker's modules are loaded, and the tests start hundreds. Each
process here is a real one: a session, environment and folder of its own, to be signalled, killed and waited for. Only
loading is shared; that `python -m broker` itself starts is tested in tests/unit/test_command_loads.py.

Run as a program, this file is the server, one to a pytest worker: it ends with the worker.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from subprocess import CompletedProcess
from typing import IO

ROOT = Path(__file__).parents[2]

PRELOADED = (
    "alembic.command",
    "alembic.config",
    "billiard._ext",
    "billiard.pool",
    "broker.api.app",
    "broker.api.leases",
    "broker.api.server",
    "broker.bootstrap.batch_run",
    "broker.bootstrap.lane_worker",
    "broker.bootstrap.ledger_reader",
    "broker.bootstrap.schema_door",
    "broker.bootstrap.schema_wait",
    "broker.bootstrap.served",
    "broker.bus.amqp",
    "broker.bus.drivers.memory",
    "broker.bus.redis",
    "broker.bus.redis_queues",
    "broker.catalog.policy",
    "broker.catalog.shares",
    "broker.cli.app",
    "broker.cli.batch",
    "broker.cli.database",
    "broker.cli.jobs",
    "broker.cli.keys",
    "broker.cli.ledger",
    "broker.cli.serve",
    "broker.cli.up",
    "broker.cli.worker",
    "broker.database.drivers.postgres.database",
    "broker.ledger.proving",
    "broker.logs",
    "broker.sdk.http",
    "celery.app.amqp",
    "celery.app.control",
    "celery.app.events",
    "celery.backends.base",
    "celery.concurrency.thread",
    "celery.events.receiver",
    "celery.fixups.django",
    "celery.loaders.app",
    "celery.worker.autoscale",
    "celery.worker.consumer",
    "celery.worker.strategy",
    "certifi",
    "encodings.idna",
    "encodings.utf_8_sig",
    "h11",
    "httpcore",
    "kombu.transport.pyamqp",
    "kombu.transport.redis",
    "kombu.transport.virtual",
    "litestar._kwargs.kwargs_model",
    "litestar.exceptions.responses",
    "litestar.middleware._internal.exceptions",
    "litestar.middleware.allowed_hosts",
    "litestar.middleware.csrf",
    "litestar.middleware.response_cache",
    "litestar.plugins.attrs",
    "litestar.plugins.pydantic.plugins.di",
    "litestar.plugins.pydantic.plugins.init",
    "litestar.plugins.pydantic.plugins.schema",
    "migrations.append_only",
    "migrations.online",
    "opentelemetry.sdk.metrics.export",
    "pydantic.networks",
    "pydantic.plugin._loader",
    "pydantic.v1",
    "rich._emoji_codes",
    "rich.progress",
    "rich.status",
    "rich.table",
    "typer._adapters",
    "typer.rich_utils",
    "uvicorn.lifespan.off",
    "uvicorn.loops.auto",
    "uvicorn.loops.uvloop",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.http.httptools_impl",
    "workers.engines.echo",
)
"""What most commands load. What is missing here is merely loaded later; none of it may start a thread."""

_REQUEST_BYTES_MAX = 1 << 20
_LOOK_SECONDS = 0.005


class Forked:
    """As much of `subprocess.Popen` as the tests use; text on its pipes.

    `stdout` and `stderr` are files where they are not pipes, or STDOUT for both in one. `program` is a module whose
    `main` is called, as the console script calls that of `broker.cli`.
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdout: IO[bytes] | IO[str] | int = subprocess.PIPE,
        stderr: IO[bytes] | IO[str] | int = subprocess.PIPE,
        program: str = "broker.cli",
    ) -> None:
        self.args = ["broker", *words]
        self.returncode: int | None = None
        self.peak_bytes = 0  # of its memory, once it has ended
        self._reading = threading.Lock()
        request = {"program": program, "words": list(words), "cwd": str(cwd), "env": dict(env)}
        with ExitStack() as given_away:
            self.stdout, out = _end(stdout, given_away)
            self.stderr, err = (None, out) if stderr == subprocess.STDOUT else _end(stderr, given_away)
            self._ends, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            given_away.callback(server_end.close)
            socket.send_fds(_server(), [json.dumps(request).encode()], [out, err, server_end.fileno()])
        (self.pid,) = self._numbers()
        self._ends.setblocking(False)

    def poll(self) -> int | None:
        with self._reading:
            if self.returncode is None:
                try:
                    self.returncode, self.peak_bytes = self._numbers()
                except BlockingIOError:
                    return None
                self._ends.close()
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(_LOOK_SECONDS)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        deadline = None if timeout is None else time.monotonic() + timeout
        texts = {pipe: bytearray() for pipe in (self.stdout, self.stderr) if pipe}
        with selectors.DefaultSelector() as open_pipes:
            for pipe in texts:
                open_pipes.register(pipe, selectors.EVENT_READ)
            while open_pipes.get_map():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise subprocess.TimeoutExpired(self.args, timeout)
                for key, _ in open_pipes.select(left):
                    content = os.read(key.fd, 1 << 16)
                    texts[key.fileobj] += content
                    if not content:
                        open_pipes.unregister(key.fileobj)
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        said, complained = (texts.get(pipe, b"").decode() for pipe in (self.stdout, self.stderr))
        return said, complained

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """The pipes, whatever is left in them."""
        for pipe in (self.stdout, self.stderr):
            if pipe:
                pipe.close()

    def _numbers(self) -> list[int]:
        content = self._ends.recv(64)
        if not content:
            raise ConnectionError("the fork server is gone")
        return [int(word) for word in content.split()]


def run(words: Sequence[str], *, cwd: Path, env: Mapping[str, str], seconds_max: float = 60.0) -> CompletedProcess[str]:
    """A command to its end, as `subprocess.run` gives it."""
    process = Forked(words, cwd=cwd, env=env)
    try:
        said, complained = process.communicate(seconds_max)
    finally:
        process.kill()
        process.close()
    return CompletedProcess(process.args, process.wait(), said, complained)


def _end(wanted: IO[bytes] | IO[str] | int, given_away: ExitStack) -> tuple[IO[str] | None, int]:
    """The end of a new pipe to read from, if one is wanted, and what is to be written to."""
    if wanted != subprocess.PIPE:
        return None, wanted.fileno()
    ours, theirs = os.pipe()
    given_away.callback(os.close, theirs)
    return os.fdopen(ours, encoding="utf-8"), theirs


def _server() -> socket.socket:
    with _starting:  # tests start processes on several threads
        return _started_server()


_starting = threading.Lock()


@cache
def _started_server() -> socket.socket:
    """The line to this pytest worker's server, which is started by the first who asks."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # The ends of a test's environment must not come in by way of the server's.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    process = subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno())],
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        start_new_session=True,
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


# From here on, what the server itself does.


def serve(line: socket.socket) -> str:
    """Fork what is asked for and report its end, until the other end of the line is closed.

    Returns in each child: the module whose `main` it is to call.
    """
    lives: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as awaited:
        awaited.register(line, selectors.EVENT_READ)
        while True:
            for key, _ in awaited.select():
                if key.fileobj is not line:
                    pid = key.data
                    awaited.unregister(key.fileobj)
                    os.close(key.fd)
                    _, status, used = os.wait4(pid, 0)
                    with lives.pop(pid) as ends:
                        _tell(ends, os.waitstatus_to_exitcode(status), used.ru_maxrss * 1024)
                    continue
                content, fds, _, _ = socket.recv_fds(line, _REQUEST_BYTES_MAX, 3)
                if not content:
                    os._exit(0)
                pid = os.fork()
                if pid == 0:
                    awaited.close()
                    line.close()
                    for ends in lives.values():
                        ends.close()
                    return _become(json.loads(content), fds)
                lives[pid] = socket.socket(fileno=fds.pop())
                for fd in fds:
                    os.close(fd)
                awaited.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)


def _tell(ends: socket.socket, *numbers: int) -> None:
    with suppress(OSError):  # who asked may be gone without waiting for the end
        ends.sendall(" ".join(map(str, numbers)).encode())


def _become(request: dict, fds: list[int]) -> str:
    os.setsid()
    out, err, ends = fds
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(out)
    os.close(err)
    with socket.socket(fileno=ends) as asker:
        _tell(asker, os.getpid())
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = ["broker", *request["words"]]
    return request["program"]


def _main() -> None:
    for name in PRELOADED:
        with suppress(ImportError):
            importlib.import_module(name)
    assert threading.active_count() == 1, threading.enumerate()
    gc.freeze()
    importlib.import_module(serve(socket.socket(fileno=int(sys.argv[1])))).main()


if __name__ == "__main__":
    _main()
