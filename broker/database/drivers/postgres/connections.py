"""Connections to PostgreSQL that always answer: settings, a limit on every statement, and errors that quote nothing.

A server that is gone without a word would leave its client waiting for ever, and a proxy in between answers the
keep-alives for it. So each statement has a limit of its own here, a little above the server's; past it the
connection is cut, and whoever waited hears of a lost connection.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Format, TransactionStatus
from psycopg.types.string import ByteaBinaryLoader, BytesBinaryDumper
from sqlalchemy import URL

from broker.domain.errors import BrokerError

__all__ = ["SessionLimits", "WatchedConnection", "connect", "is_lost", "place_of", "roll_back", "run"]

CONNECT_SECONDS = 5
_GRACE_SECONDS = 5.0
_LOOK_SECONDS = 0.25
_PREPARED_AFTER = 3


class SessionLimits(NamedTuple):
    """What a session is opened with. A limit of 0 is none."""

    name: str
    statement_seconds: float = 60.0
    idle_in_transaction_seconds: float = 60.0


class _Watch:
    """Cuts connections whose statement takes longer than it may; one thread for all of the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until: dict[WatchedConnection, float] = {}
        self._busy = threading.Event()  # so that nobody looks where there is nothing to see
        self._thread: threading.Thread | None = None

    def begin(self, driver: WatchedConnection) -> None:
        with self._lock:
            self._until[driver] = time.monotonic() + driver.answer_seconds
            if not self._busy.is_set():
                self._busy.set()
            if self._thread is None or not self._thread.is_alive():  # a forked child has none
                self._thread = threading.Thread(target=self._look, name="database-watch", daemon=True)
                self._thread.start()

    def end(self, driver: WatchedConnection) -> None:
        with self._lock:
            self._until.pop(driver, None)

    def _look(self) -> None:
        while self._busy.wait():
            time.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            with self._lock:  # nobody ends a statement, and so closes its connection, meanwhile
                for driver in [driver for driver, until in self._until.items() if until < now]:
                    del self._until[driver]
                    _cut(driver)
                if not self._until:
                    self._busy.clear()


def _cut(driver: WatchedConnection) -> None:
    try:
        with socket.socket(fileno=os.dup(driver.fileno())) as copy:
            copy.shutdown(socket.SHUT_RDWR)
    except (OSError, psycopg.Error):
        pass  # it was closed meanwhile, which is what we want


_watch = _Watch()


class WatchedConnection(psycopg.Connection[Any]):
    """A connection whose statements have a limit; 0 is none."""

    name: str = ""
    answer_seconds: float = 0.0

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Inside, an answer comes in time or the connection is cut; errors say what broke and quote no value."""
        if self.answer_seconds:
            _watch.begin(self)
        try:
            yield
        except psycopg.Error as error:
            _unquote(error)
            raise
        finally:
            if self.answer_seconds:
                _watch.end(self)


def _unquote(error: psycopg.Error) -> None:
    """PostgreSQL quotes the offending row, or the value, which may be a prompt."""
    if error.sqlstate and error.sqlstate.startswith("23"):
        error.args = (error.diag.message_primary, *error.args[1:])
    elif error.sqlstate and error.sqlstate.startswith("22"):
        error.args = (f"{type(error).__name__} (SQLSTATE {error.sqlstate})", *error.args[1:])


class _Cursor(psycopg.Cursor[Any]):
    """Every statement within the limit; its rows come in binary, which halves what prompts and ids cost to read."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 (passed on as they are)
        super().__init__(*arguments, **options)
        self.format = Format.BINARY

    def execute(self, *arguments: Any, **options: Any) -> Self:  # noqa: ANN401 (passed on as they are)
        with self.connection.answering():  # type: ignore[attr-defined] # (it is of a WatchedConnection)
            return super().execute(*arguments, **options)

    def executemany(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 (passed on as they are)
        with self.connection.answering():  # type: ignore[attr-defined] # (as above)
            super().executemany(*arguments, **options)

    @contextmanager
    def copy(self, *arguments: Any, **options: Any) -> Iterator[psycopg.Copy]:  # noqa: ANN401 (passed on as they are)
        with self.connection.answering(), super().copy(*arguments, **options) as copying:  # type: ignore[attr-defined] # (as above)
            yield copying


class _StreamCursor(psycopg.ServerCursor[Any]):
    """Likewise, for rows that are fetched piece by piece."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 (passed on as they are)
        super().__init__(*arguments, **options)
        self.format = Format.BINARY

    def execute(self, *arguments: Any, **options: Any) -> Self:  # noqa: ANN401 (passed on as they are)
        with self.connection.answering():  # type: ignore[attr-defined] # (it is of a WatchedConnection)
            return super().execute(*arguments, **options)

    def fetchmany(self, size: int = 0) -> list[Any]:
        with self.connection.answering():  # type: ignore[attr-defined] # (as above)
            return super().fetchmany(size)


def connect(url: str, settings: SessionLimits) -> WatchedConnection:
    """A connection in autocommit mode: its transactions begin where we say."""
    driver = WatchedConnection.connect(
        url,
        autocommit=True,
        connect_timeout=CONNECT_SECONDS,
        application_name=settings.name,
        prepare_threshold=_PREPARED_AFTER,
        cursor_factory=_Cursor,
        keepalives_idle=10,
        keepalives_interval=5,
        keepalives_count=3,
        tcp_user_timeout=25_000,
        options=_options(url, settings),
    )
    driver.server_cursor_factory = _StreamCursor
    driver.adapters.register_dumper(bytes, BytesBinaryDumper)  # else COPY takes one that is written in Python
    driver.adapters.register_loader("uuid", ByteaBinaryLoader)  # ids stay the 16 bytes that they come as
    driver.answer_seconds = settings.statement_seconds + _GRACE_SECONDS if settings.statement_seconds else 0.0
    return driver


def _options(url: str, settings: SessionLimits) -> str:
    """What the server is told at once, after what the URL itself tells it."""
    ours = {
        "timezone": "UTC",
        "statement_timeout": round(settings.statement_seconds * 1_000),
        "idle_in_transaction_session_timeout": round(settings.idle_in_transaction_seconds * 1_000),
        # Its own way to notice that we are gone, which frees our locks.
        "tcp_keepalives_idle": 10,
        "tcp_keepalives_interval": 5,
        "tcp_keepalives_count": 3,
    }
    told = conninfo_to_dict(url).get("options")
    return " ".join([*([str(told)] if told else []), *(f"-c {name}={value}" for name, value in ours.items())])


def run(driver: WatchedConnection, text: str) -> psycopg.Cursor[Any]:
    """Statements without parameters, several at once if they are to travel together."""
    return driver.cursor().execute(text, prepare=False, binary=False)


def is_lost(driver: WatchedConnection) -> bool:
    """Whether the connection is of no more use."""
    return driver.closed or driver.broken


def roll_back(driver: WatchedConnection) -> None:
    """End a transaction that came to nothing; on a lost connection it ends by itself."""
    if not is_lost(driver) and driver.info.transaction_status is not TransactionStatus.IDLE:
        try:
            run(driver, "ROLLBACK")
        except psycopg.Error:
            driver.close()


def place_of(url: str) -> URL:
    """Where the URL leads, without its password and its options. Raises BrokerError where it can't be read."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.Error:  # its text would quote the URL
        raise BrokerError("the database URL can't be read; it looks like postgresql://user@host:5432/name") from None
    port = str(parts.get("port") or "")
    return URL.create(
        "postgresql+psycopg",
        username=str(parts["user"]) if "user" in parts else None,
        host=str(parts["host"]) if "host" in parts else None,
        port=int(port) if port.isdecimal() else None,
        database=str(parts["dbname"]) if "dbname" in parts else None,
    )
