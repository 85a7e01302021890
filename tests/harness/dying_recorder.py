"""`broker serve` whose recorder dies (kill -9) at a set point, again and again; the harness runs it in its place.

HARNESS_DEATHS names a file to which each death adds its point, HARNESS_DEATHS_MAX how many there are to be. Each life
is a fork of a process that has loaded everything, so that hundreds of deaths take minutes. The points: `received`,
events are in hand and nothing is written; `written`, all is written and not committed; `committed`, it is committed
and not acknowledged.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import broker.bootstrap.served
import broker.cli
import broker.cli.serve
from broker.database.connection import Connection
from broker.domain.events import WorkerEvent
from broker.ledger.streams import OpenStream
from broker.stages.recorder import Recorder

__all__ = ["DEATHS", "DEATHS_MAX", "POINTS"]

DEATHS = "HARNESS_DEATHS"
DEATHS_MAX = "HARNESS_DEATHS_MAX"
POINTS = ("received", "written", "committed")
_FLUSHES_MAX = 3
_PARENT_SECONDS = 0.2

assert broker.bootstrap.served.Served  # loaded before the first fork
assert broker.cli.serve.app


class _Fate:
    """Dies at `point` of the `flushes`-th flush."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._point = random.choice(POINTS)
        self._flushes = random.randint(1, _FLUSHES_MAX)

    def at(self, point: str) -> None:
        if point == POINTS[0]:
            self._flushes -= 1
        if self._flushes == 0 and point == self._point:
            with self._path.open("a") as file:
                file.write(f"{point}\n")
            os.kill(os.getpid(), signal.SIGKILL)


def _make_mortal(path: Path) -> None:
    fate, record, write = _Fate(path), Recorder.record, Recorder._write

    def mortal_record(self: Recorder, deliveries: Sequence[Any]) -> None:
        fate.at("received")
        record(self, deliveries)
        fate.at("committed")

    def mortal_write(
        self: Recorder, connection: Connection, events: list[WorkerEvent], stream: OpenStream
    ) -> list[bytes]:
        ended = write(self, connection, events, stream)
        fate.at("written")
        return ended

    Recorder.record = mortal_record  # type: ignore[method-assign]  # what this program is for
    Recorder._write = mortal_write  # type: ignore[method-assign]  # likewise


def _die_with(parent: int) -> None:
    """The harness ends the parent; a life must not go on without it."""
    while os.getppid() == parent:
        time.sleep(_PARENT_SECONDS)
    os._exit(1)


def _live(path: Path, parent: int) -> None:
    random.seed()
    threading.Thread(target=_die_with, args=[parent], daemon=True).start()
    if len(path.read_text().split()) < int(os.environ[DEATHS_MAX]):
        _make_mortal(path)
    sys.argv = ["broker", "serve", *sys.argv[1:]]
    broker.cli.main()
    os._exit(0)


def main() -> None:
    """One life after the other, until SIGTERM, which the present one gets too."""
    path = Path(os.environ[DEATHS])
    path.touch()
    here = os.getpid()
    while True:
        child = os.fork()
        if child == 0:
            _live(path, here)
        signal.signal(signal.SIGTERM, lambda *_, life=child: os.kill(life, signal.SIGTERM))
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(os.waitstatus_to_exitcode(status))
