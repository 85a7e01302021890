"""One process that is started again whenever it ends, as an orchestrator would, until it is retired."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.flow.forkserver import Forked

__all__ = ["Life", "Supervised"]

_AGAIN_SECONDS = 0.2
_CRASHED_AT_ONCE_SECONDS = 3.0
_BACK_OFF_SECONDS = 1.0


class Life(NamedTuple):
    """One process from its start to its end. `asked` is what ended it, by our doing; None where it ended by itself."""

    pid: int
    began: float
    ended: float
    code: int
    asked: str | None


class Supervised:
    """`lives` are those that have ended. Times are Unix seconds.

    `command` is a module, whose `main` is called, and the words that it is given.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.lives: list[Life] = []
        self.log = folder / f"{name}.log"
        self._command = command
        self._environment = environment
        self._folder = folder
        self._process: Forked | None = None
        self._began = 0.0
        self._asked: str | None = None
        self._retired = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name=f"supervises-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """None while it is down."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def kill(self) -> int | None:
        """kill -9; the process it hit."""
        return self._signal(signal.SIGKILL, "kill -9")

    def terminate(self) -> int | None:
        """SIGTERM; the process it hit, which may take its time."""
        return self._signal(signal.SIGTERM, "SIGTERM")

    def freeze(self) -> int | None:
        return self._signal(signal.SIGSTOP, None)

    def thaw(self) -> int | None:
        return self._signal(signal.SIGCONT, None)

    def retire(self, seconds: float = 20.0) -> None:
        """End it for good: asked to at first, killed after a while."""
        self._retired.set()
        self.thaw()
        self.terminate()
        deadline = time.monotonic() + seconds
        while self.pid is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        self.kill()
        if self._thread.is_alive():
            self._thread.join()

    def wait_for_another(self, pid: int | None, seconds: float = 30.0) -> None:
        """Until another process runs in the place of this one."""
        deadline = time.monotonic() + seconds
        while self.pid in {None, pid}:
            assert time.monotonic() < deadline, f"{self.name} did not come back within {seconds:g} s:\n{self.tail()}"
            time.sleep(0.02)

    def pids(self) -> list[int]:
        """Of all its lives, the present one included."""
        return [life.pid for life in self.lives] + ([self.pid] if self.pid is not None else [])

    def crashes(self) -> list[Life]:
        """Ends that nobody asked for."""
        return [life for life in self.lives if life.asked is None]

    def tail(self, lines: int = 12) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def _signal(self, number: int, asked: str | None) -> int | None:
        process = self._process
        if process is None or process.poll() is not None:
            return None
        self._asked = asked or self._asked
        os.kill(process.pid, number)
        return process.pid

    def _supervise(self) -> None:
        while not self._retired.is_set():
            self._began = time.time()
            self._asked = None
            with self.log.open("ab") as log:
                program, *words = self._command
                process = self._process = Forked(
                    words, cwd=self._folder, env=self._environment, stdout=log, stderr=log, program=program
                )
            code = process.wait()
            ended = time.time()
            self.lives.append(Life(process.pid, self._began, ended, code, self._asked))
            hurried = self._asked is None and ended - self._began < _CRASHED_AT_ONCE_SECONDS
            self._retired.wait(_BACK_OFF_SECONDS if hurried else _AGAIN_SECONDS)
