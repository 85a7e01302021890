"""Putting SQLite's write-ahead log on disk, beside the writer: it commits on while the disk is at it.

SQLite would wait for the disk within each commit (`synchronous=FULL`). Here it doesn't (`NORMAL`), and callers hear of
their commit once a flush of the log that began after it has ended. The log is one file, so a flush takes along all
commits before it; and SQLite puts the log on disk before it moves anything out of it.
"""

from __future__ import annotations

import os
import queue
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from broker.domain.errors import BrokerError

__all__ = ["Committed", "LogSyncer"]

_flush_to_disk = getattr(os, "fdatasync", os.fsync)  # not everywhere; the other one does more

_log = structlog.get_logger(__name__)


class Committed(NamedTuple):
    """What one caller's work returned, to be told once it is on disk."""

    future: Future[Any]
    value: Any


class LogSyncer:
    """One thread that flushes, for all that gathered during the last flush at once."""

    def __init__(self, log: Path) -> None:
        self.failure: BrokerError | None = None
        """Set once the disk has failed: what is on it is unknown from then on, and nothing more may be promised."""
        self._log = log
        self._gathered: queue.SimpleQueue[list[Committed] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="log-syncer", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether its thread lives."""
        return self._thread.is_alive()

    def put(self, committed: list[Committed]) -> None:
        """Tell these callers when the log, as it is now, is on disk."""
        self._gathered.put(committed)

    def close(self) -> None:
        """Finish what was put before."""
        self._gathered.put(None)
        self._thread.join()

    def _run(self) -> None:
        descriptor: int | None = None
        try:
            while (committed := self._next()) is not None:
                try:
                    if descriptor is None:
                        descriptor = os.open(self._log, os.O_RDWR | os.O_CLOEXEC)
                    if self.failure is None:
                        _flush_to_disk(descriptor)
                except OSError as error:
                    _log.error("disk_failed", path=str(self._log), reason=error.strerror)
                    self.failure = BrokerError(
                        f"the disk failed under {self._log}: {error.strerror}; what was last written may not be kept:"
                        " start again when the disk is well"
                    )
                for future, value in committed:
                    if self.failure is None:
                        future.set_result(value)
                    else:
                        future.set_exception(self.failure)
        finally:
            if descriptor is not None:
                os.close(descriptor)  # SQLite locks other files than this one, so that closing it lets go of no lock

    def _next(self) -> list[Committed] | None:
        """What has gathered; None once closed and drained."""
        found = self._gathered.get()
        if found is None:
            return None
        committed = list(found)
        while not self._gathered.empty():
            following = self._gathered.get()
            if following is None:
                self._gathered.put(None)
                break
            committed += following
        return committed
