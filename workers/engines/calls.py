"""The log of an engine's calls: how often each job really ran, counted across any death of the process."""

from __future__ import annotations

import os
from pathlib import Path

from broker.domain.errors import ErrorCode
from workers.engine import EngineError

__all__ = ["CallLog"]


class CallLog:
    """Appends one line, the request's label, for each call. Without a path it writes nothing.

    Each line is one O_APPEND write: lines of several processes never mix, and the kernel has the line even if
    this process is killed next. Used from one event loop.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self._path = path or None
        self._descriptor = -1

    def open(self) -> None:
        """Open the file, made where it is missing. Raises EngineError where it can't be written."""
        if self._path is None or self._descriptor >= 0:
            return
        try:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            message = f"the engine option call_log={str(self._path)!r} can't be written: {error.strerror}"
            raise EngineError(ErrorCode.ENGINE_MISCONFIGURED, message, is_free=True) from None

    def append(self, label: str) -> None:
        """Log one call; to be done just before the request is sent."""
        if self._path is not None:
            self.open()
            os.write(self._descriptor, label.replace("\n", " ").encode() + b"\n")

    def close(self) -> None:
        """Close the file; harmless when it is not open."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
