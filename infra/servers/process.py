"""A server of one's own: started from the installed binary on a free port in a temporary folder, gone afterwards.

Nothing here reaches a server that it didn't start: each runs on ports of its own and is signalled by its process id.
A guard, this file run as a program, ends it and deletes its folder even when whoever started it is killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

__all__ = ["PrivateServer", "ServerFailed", "ServerMissing", "find_program", "free_port"]

STOP_SECONDS = 15.0
PROCESSES = "processes"


class ServerMissing(Exception):
    """A server's program isn't installed; one sentence says which."""


class ServerFailed(Exception):
    """A server didn't come up, with what it said last; or it isn't in the state that was asked of it."""


def find_program(service: str, names: Sequence[str], folders: Sequence[str] = ()) -> str:
    """The path of the first of these programs that is installed. Raises ServerMissing."""
    searched = os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)])
    for name in names:
        found = shutil.which(name, path=searched)
        if found is not None:
            return found
    raise ServerMissing(f"no {service} to start: {' or '.join(names)} is not installed")


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class PrivateServer:
    """One server process with its folder. As a context manager it starts on entering and leaves nothing behind.

    A subclass says with `command`, `environment` and `answers` what to run and when it is up. `url` stays the same
    over restarts, and so does what the server keeps on disk.
    """

    name = "server"
    start_seconds = 60.0
    stop_signal = signal.SIGTERM
    user: str | None = None  # whom to run it as; None for whoever starts it

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"private-{self.name}-"))
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        command = [sys.executable, __file__, str(self.folder)]
        self._guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    def command(self) -> list[str]:
        """What to run."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """What the server is told besides our own environment."""
        return {}

    def answers(self) -> bool:
        """Whether the server can be used by now; never raises."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it, or start it again; returns once it answers. Raises ServerFailed."""
        if self.process is not None:
            raise ServerFailed(f"private {self.name} runs already")
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env={**os.environ, **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for whoever started it, who then ends it
                user=self.user,
                group=self.user,
            )
        self.note_process(self.process.pid)
        deadline = time.monotonic() + self.start_seconds
        while not self.answers():
            ended = self.process.poll() is not None
            if ended or time.monotonic() > deadline:
                self.kill()
                why = "ended at once" if ended else f"did not answer within {self.start_seconds} s"
                raise ServerFailed(f"private {self.name} {why}:\n{self.log_tail()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ask it to end, and wait until it has; what hangs is killed."""
        process = self.process
        if process is None:
            return
        process.send_signal(self.stop_signal)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process = None

    def kill(self) -> None:
        """End it with all its children, without a last word to its disk or its clients."""
        process = self.process
        if process is None:
            return
        self._signal(signal.SIGKILL)
        process.wait()
        self.process = None

    def restart(self) -> None:
        """End it in order, and start it again."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def remove(self) -> None:
        """End it and delete all it wrote."""
        self.kill()
        self._guard.communicate()

    def log_tail(self, lines: int = 15) -> str:
        """What it said last."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def note_process(self, pid: int) -> None:
        """Have the guard end this process too, if it still lives at the end."""
        with (self.folder / PROCESSES).open("a") as noted:
            noted.write(f"{pid} {_started_at(pid)}\n")

    @property
    def log_path(self) -> Path:
        """Where it says what it says."""
        return self.folder / "output.log"

    def _signal(self, number: int) -> None:
        """Signal it and all below it, the server itself first so that it starts no new children meanwhile."""
        if self.process is None:
            raise ServerFailed(f"private {self.name} does not run")
        below = _descendants(self.process.pid)
        for pid in (self.process.pid, *below):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        if number == signal.SIGKILL:
            _wait_until_gone(below)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _descendants(root: int) -> list[int]:
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in listing.splitlines():
        pid, parent = map(int, line.split())
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _wait_until_gone(pids: Sequence[int]) -> None:
    """Orphans are reaped by whoever adopts them; a zombie holds no port and no file."""
    deadline = time.monotonic() + 5
    for pid in pids:
        while time.monotonic() < deadline and _lives(pid):
            time.sleep(0.01)


def _lives(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.strip() != "" and not state.strip().startswith("Z")


def _started_at(pid: int) -> str:
    """When the process began; with the number it names a process for good, empty when there is none."""
    listing = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return listing.stdout.strip()


def _guard(folder: Path) -> None:
    """Wait until whoever started us closes the pipe or dies, then leave nothing behind."""
    sys.stdin.read()
    noted = folder / PROCESSES
    for line in noted.read_text().splitlines() if noted.exists() else []:
        pid, _, began = line.partition(" ")
        if began and _started_at(int(pid)) == began:
            for each in (int(pid), *_descendants(int(pid))):
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _guard(Path(sys.argv[1]))
