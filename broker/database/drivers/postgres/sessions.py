"""A session of one's own on PostgreSQL, for what lasts longer than a transaction: locks that say who does what.

To ask whether it is still there costs no waiting: a question goes out every few seconds, and its answer is looked
for when somebody asks next. A session that doesn't answer in time is given up, well before or soon after the
server gives it up; what must not happen twice is fenced inside each transaction besides (`fencing.alone`).
"""

from __future__ import annotations

import selectors
import time

import psycopg
import structlog
from psycopg.pq import ConnStatus
from psycopg.pq.abc import PGconn

from broker.database.drivers.postgres.connections import SessionLimits, WatchedConnection, connect
from broker.domain.errors import named
from broker.domain.ids import new_id

__all__ = ["Session"]

_log = structlog.get_logger(__name__)

_BEAT_SECONDS = 2.0
_SILENCE_SECONDS_MAX = 8.0
_RECONNECT_SECONDS = 1.0
_STATEMENT_SECONDS = 5.0


class Session:
    """Used by one thread. It connects when first needed, and again, at most once a second, after it was lost."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = f"{name[:40]} {new_id().hex()[-20:]}"
        self._driver: WatchedConnection | None = None
        self._before = False  # a session of this name may still be there, with its locks
        self._next_try = 0.0
        self._heard = 0.0
        self._asked = 0.0  # when the question went out that is yet to be answered; 0 when there is none

    def driver(self) -> WatchedConnection | None:
        """The connection, made anew if need be; None while there is none to be had."""
        if self.is_alive():
            return self._driver
        now = time.monotonic()
        if now < self._next_try:
            return None
        self._next_try = now + _RECONNECT_SECONDS
        try:
            made = connect(self._url, SessionLimits(self._name, _STATEMENT_SECONDS))
            if self._before:
                self._end_earlier(made)
        except psycopg.Error as error:
            _log.info("session_not_there", name=self._name, reason=named(error))
            return None
        self._driver, self._before = made, True
        self._heard, self._asked = time.monotonic(), 0.0
        return made

    def is_alive(self) -> bool:
        """Whether the session is there, as far as is known. Never waits."""
        if self._driver is None:
            return False
        try:
            if self._still_answers(self._driver):
                return True
        except psycopg.Error:
            pass
        _log.warning("session_lost", name=self._name)
        self.close()
        return False

    def close(self) -> None:
        """Let go of it, and with it of its locks."""
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def _still_answers(self, driver: WatchedConnection) -> bool:
        if driver.closed:
            return False
        wire, now = driver.pgconn, time.monotonic()
        for _ in range(2):  # a server's last words come before its end is seen
            wire.consume_input()
        if wire.status != ConnStatus.OK:
            return False
        if self._asked:
            if _answered(wire):
                self._heard, self._asked = now, 0.0
            return now - (self._asked or now) < _SILENCE_SECONDS_MAX
        if now - self._heard > _BEAT_SECONDS:
            wire.send_query(b"SELECT 1")
            wire.flush()
            self._asked = now
        return True

    def settle(self) -> None:
        """Wait for the answer that is on its way, so that statements can be run."""
        until = time.monotonic() + _STATEMENT_SECONDS
        while self.is_alive() and self._asked and self._driver is not None:
            left = until - time.monotonic()
            if left <= 0:
                self.close()
            else:
                _wait_readable(self._driver.fileno(), left)

    def _end_earlier(self, driver: WatchedConnection) -> None:
        """The server may take a while to notice that the session before this one has no client any more."""
        driver.execute(
            "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE application_name = %s"
            " AND usename = current_user AND datname = current_database() AND pid <> pg_backend_pid()",
            [self._name],
        )


def _wait_readable(descriptor: int, seconds: float) -> None:
    """By a selector, for `select.select` raises at descriptors above 1023, which a busy door's process has."""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        selector.select(seconds)


def _answered(wire: PGconn) -> bool:
    """Whether the whole answer is here, which is then taken. To take what isn't here yet would wait for it."""
    while not wire.is_busy():
        if wire.get_result() is None:
            return True
    return False
