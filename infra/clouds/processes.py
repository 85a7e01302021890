"""The demonstration's processes: what each is, where its log is, and that none outlives it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

__all__ = ["Failed", "Processes"]

_STOP_SECONDS = 15.0
_LOOK_SECONDS = 0.1
_TAIL_LINES = 12


class Failed(Exception):
    """The demonstration can't go on; one sentence, and what the process in question said last."""


class Processes:
    """Started one by one, ended together, the last one first. `folder` gets a log of each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._variables = dict(os.environ)
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for _, process in reversed(self._running):
            process.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for _, process in self._running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def tell(self, **variables: str) -> None:
        """Environment variables of what is started from now on."""
        self._variables |= variables

    def start(self, name: str, module: str, *arguments: str) -> None:
        """`python -m module arguments`, until the end."""
        with self._log(name).open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 (this project's own programs)
                [sys.executable, "-m", module, *arguments],
                env=self._variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demonstration, which then ends them in order
            )
        self._running.append((name, process))

    def run(self, module: str, *arguments: str, shown: bool = True) -> str:
        """`python -m module arguments` to its end, its output for the person to see, or returned."""
        done = subprocess.run(  # noqa: S603 (likewise)
            [sys.executable, "-m", module, *arguments],
            env=self._variables,
            stdout=None if shown else subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise Failed(f"`{module} {' '.join(arguments[:3])}` ended with {done.returncode}")
        return done.stdout or ""

    def wait_to_say(self, name: str, words: str, seconds: float) -> str:
        """The first line of its log with these words, once it is there.

        Raises Failed where any process ends before, or the time is over.
        """
        deadline = time.monotonic() + seconds
        while (line := self._said(name, words)) is None:
            for other, process in self._running:
                if process.poll() is not None:
                    raise Failed(f"{other} ended while {name} was starting:\n{self._tail(other)}")
            if time.monotonic() > deadline:
                raise Failed(f"{name} was not up within {seconds:g} s:\n{self._tail(name)}")
            time.sleep(_LOOK_SECONDS)
        return line

    def _said(self, name: str, words: str) -> str | None:
        lines = self._log(name).read_text(errors="replace").splitlines()
        return next((line for line in lines if words in line), None)

    def _tail(self, name: str) -> str:
        return "\n".join(self._log(name).read_text(errors="replace").splitlines()[-_TAIL_LINES:])

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"
