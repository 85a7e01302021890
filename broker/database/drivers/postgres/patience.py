"""What a failure on PostgreSQL means: try again, or tell; and for how long to go on trying."""

from __future__ import annotations

import random
import threading
import time

import psycopg
from sqlalchemy.exc import DBAPIError

from broker.database.drivers.postgres.marks import MarkLost

__all__ = ["Patience", "is_connection_lost", "may_pass_at_once"]

_READ_ONLY = "25006"
_RETRYABLE = {
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "53300",  # too_many_connections
    "55006",  # object_in_use
}
_RETRYABLE_CLASSES = ("08", "57P")  # connection exceptions; shutdowns, restarts, "cannot connect now"
_UNIQUE_VIOLATION, _CHECK_VIOLATION = "23505", "23514"
_FIRST_PAUSE_SECONDS, _PAUSE_SECONDS_MAX = 0.01, 1.0

_DECIDED_ELSEWHERE = ("job_outcome", "idempotency", "ledger_batch", "attempt", "cost_entry", "work_group", "reply")
"""Where a row of this key means that someone else was faster: the work, run again, sees it."""


def may_pass_at_once(error: BaseException, *, writing: bool = True) -> bool:
    """Whether the same work may go well if it is simply run again."""
    if isinstance(error, MarkLost):
        return True
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, psycopg.Error):
        return False
    state = cause.sqlstate
    if state is None:
        return isinstance(cause, psycopg.OperationalError)  # it never reached the server, or lost it
    if state == _UNIQUE_VIOLATION:
        return (cause.diag.table_name or "").startswith(_DECIDED_ELSEWHERE)
    if state == _CHECK_VIOLATION:
        # Of DEFAULT's own bounds: the row's month got its partition while the row was on its way here.
        return cause.diag.constraint_name is None and (cause.diag.table_name or "").endswith("_default")
    if state == _READ_ONLY:
        return writing  # a failover left us with a standby; but who reads must not write
    return state in _RETRYABLE or state.startswith(_RETRYABLE_CLASSES)


def is_connection_lost(error: BaseException) -> bool:
    """Whether a new connection may lead to where the work goes well."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, psycopg.Error):
        return False
    state = cause.sqlstate
    return (state is None and isinstance(cause, psycopg.OperationalError)) or (
        state is not None and (state == _READ_ONLY or state.startswith(_RETRYABLE_CLASSES))
    )


class Patience:
    """Pauses between tries, longer each time and never two alike, until the time is up or `stopping` is set."""

    def __init__(self, seconds: float, stopping: threading.Event | None = None) -> None:
        self._until = time.monotonic() + seconds
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self._stopping = stopping or threading.Event()

    def outlasts(self) -> bool:
        """Wait a little; whether there is time for another try after it."""
        pause = self._pause_seconds * random.uniform(0.5, 1.5)  # noqa: S311 (to come apart, not to be secret)
        self._pause_seconds = min(2 * self._pause_seconds, _PAUSE_SECONDS_MAX)
        if time.monotonic() + pause > self._until:
            return False
        return not self._stopping.wait(pause)
