"""Logs: one JSON object a line. Never a prompt, a reply, a secret, or the locals of a traceback."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO, cast

import structlog

from broker.domain.errors import UsageError

__all__ = ["log_to_file", "log_to_stderr"]

_SECRET_WORDS = ("secret", "password", "token", "private", "authorization", "api_key", "body", "prompt")
_COUNTED = ("input_tokens", "output_tokens")


def log_to_file(path: Path, level: str) -> TextIO:
    """Send structlog's and the standard library's logs to `path`, which grows; returns the open file.

    Raises UsageError where it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = path.open("a", buffering=1, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"can't write in the data folder {path.parent}: {error.strerror}") from None
    _configure(file, level)
    return file


def log_to_stderr(level: str) -> None:
    """Likewise, for processes whose standard error is gathered."""
    _configure(sys.stderr, level)


def _configure(file: TextIO, level: str) -> None:
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _redact,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Unfailing(file))),
        cache_logger_on_first_use=False,
    )
    # Celery and kombu speak through the standard library; only their warnings matter here.
    handler = logging.StreamHandler(_Unfailing(file))
    handler.setFormatter(_JsonLines())
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)


class _Unfailing(io.TextIOBase):
    """A log that can't be written (the disk is full) stops nothing: the work matters more than its record."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            return self._file.write(text)
        return 0

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._file.flush()


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        line = {"logger": record.name, "level": record.levelname.lower(), "event": record.getMessage(), "timestamp": at}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return str(structlog.processors.JSONRenderer()(None, "", line))


def _redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:  # noqa: ANN401 (structlog's signature)
    for name in event:
        if name not in _COUNTED and any(word in name for word in _SECRET_WORDS):
            event[name] = "[redacted]"
    return event
