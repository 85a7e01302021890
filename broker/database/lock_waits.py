"""Statements that lock a table in use, on PostgreSQL: they wait shortly, again and again, and say for whom.

Whoever waits for a table's strongest lock makes all later comers wait too, readers included. So such a statement gives
up soon, lets them through, and comes back; what holds it up meanwhile is looked at from a second session.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DatabaseError

from broker.domain.errors import BrokerError

__all__ = ["LOCK_TIMEOUT_MS", "OnlineSession", "Report", "online_session"]

T = TypeVar("T")

Report = Callable[[str], None]
"""Where a sentence for the person who upgrades goes."""

LOCK_TIMEOUT_MS = 300
"""How long a statement waits for a lock, and so how long it may hold up everyone else.

A transaction that locks several tables may wait so long for each while it holds those before: few tables to a revision.
"""

PATIENCE_SECONDS = 900.0
"""How long the same lock is asked for again and again."""

_PAUSE_SECONDS, _PAUSE_SECONDS_MAX = 1.0, 5.0
_LOOK_SECONDS = 0.1
_SAY_SECONDS = 10.0

_RETRYABLE = {
    "55P03",  # lock_not_available
    "40P01",  # deadlock_detected: the other one went on
}

_BLOCKERS = text(
    "SELECT format('session %s (%s, %s%s)', pid, coalesce(nullif(application_name, ''), 'no name'), usename,"
    " coalesce(', in a transaction since ' || to_char(xact_start AT TIME ZONE 'UTC', 'HH24:MI:SS') || 'Z', ''))"
    " FROM pg_stat_activity WHERE pid = ANY(pg_blocking_pids(:pid)) ORDER BY xact_start"
)


class _Lookout:
    """Sees, from a session of its own, who holds what another session waits for."""

    def __init__(self, engine: Engine, pid: int, report: Report) -> None:
        self._engine = engine
        self._pid = pid
        self._report = report
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="lock-lookout", daemon=True)
        self._seen: list[str] = []
        self._thread.start()

    def take_seen(self) -> str:
        """Who was in the way when that was last seen; it is told once."""
        seen, self._seen = self._seen, []
        return " and ".join(seen) or "a session that has let go meanwhile"

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        waiting_since = said_at = time.monotonic()
        try:
            with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                while not self._ended.wait(_LOOK_SECONDS):
                    found = list(connection.execute(_BLOCKERS, {"pid": self._pid}).scalars())
                    now = time.monotonic()
                    if not found:
                        waiting_since = said_at = now
                        continue
                    self._seen = found
                    if now - said_at >= _SAY_SECONDS:
                        said_at = now
                        self._report(f"Waiting for {' and '.join(found)}, for {now - waiting_since:.0f} s.")
        except DatabaseError:
            pass  # the upgrade goes on without names; what it waits for itself, it says


class OnlineSession:
    """A session that changes a schema in use. Outside of `transaction` each statement is its own."""

    def __init__(self, connection: Connection, lookout: _Lookout, report: Report, patience_seconds: float) -> None:
        self._connection = connection
        self._lookout = lookout
        self._report = report
        self._patience_seconds = patience_seconds

    def rows(self, question: str, **values: object) -> list[tuple[object, ...]]:
        """What a read finds."""
        found = [tuple(row) for row in self._connection.execute(text(question), values)]
        self._connection.commit()
        return found

    def at_length(self, statement: str) -> None:
        """A statement that keeps nobody waiting, however long it waits and works, as all that say CONCURRENTLY."""
        self._set_lock_timeout(0)
        self._run(statement)

    def briefly(self, statement: str) -> None:
        """A statement whose lock keeps others waiting, and which is done as soon as it has it."""
        self._again_and_again(lambda: self._run(statement))

    def transaction(self, work: Callable[[Connection], T]) -> T:
        """`work` in a transaction, wholly or not at all; run again where a lock was not to be had in time."""

        def whole() -> T:
            connection = self._connection.execution_options(isolation_level="READ COMMITTED")
            try:
                with connection.begin():
                    return work(connection)
            finally:
                connection.execution_options(isolation_level="AUTOCOMMIT")

        return self._again_and_again(whole)

    def _again_and_again(self, attempt: Callable[[], T]) -> T:
        until, pause = time.monotonic() + self._patience_seconds, _PAUSE_SECONDS
        while True:
            self._set_lock_timeout(LOCK_TIMEOUT_MS)
            self._lookout.take_seen()  # of a wait before this one
            try:
                return attempt()
            except DatabaseError as error:
                if getattr(error.orig, "sqlstate", None) not in _RETRYABLE:
                    raise
                holder = self._lookout.take_seen()
                if time.monotonic() + pause > until:
                    raise BrokerError(
                        f"A table stayed locked for {self._patience_seconds:g} s by {holder}: end that session, and run"
                        " `broker db upgrade` again; what was done before stays done."
                    ) from error
                self._report(f"A table is locked by {holder}; tried again in {pause:g} s.")
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE_SECONDS_MAX)

    def _set_lock_timeout(self, milliseconds: int) -> None:
        self._run(f"SET lock_timeout = {milliseconds}")

    def _run(self, statement: str) -> None:
        with self._connection.begin():  # SQLAlchemy's; to the server each statement is on its own
            self._connection.exec_driver_sql(statement)


@contextmanager
def online_session(
    engine: Engine, lock_key: int, report: Report, patience_seconds: float = PATIENCE_SECONDS
) -> Iterator[OnlineSession]:
    """The one session of a database that holds this advisory lock; waits until another lets go of it."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        said = False
        # Asked for again rather than waited for: a waiting statement's snapshot would hold up the other's indexes.
        while not _ask(connection, "SELECT pg_try_advisory_lock(:key)", key=lock_key):
            if not said:
                report("Another `broker db upgrade` is at work on this database; waiting for it.")
            said = True
            time.sleep(_PAUSE_SECONDS / 2)
        lookout = _Lookout(engine, _ask(connection, "SELECT pg_backend_pid()"), report)
        try:
            yield OnlineSession(connection, lookout, report, patience_seconds)
        finally:
            lookout.end()
            connection.invalidate()  # the session ends, and its lock with it


def _ask(connection: Connection, question: str, **values: object) -> Any:  # noqa: ANN401 (what the question asks for)
    with connection.begin():
        return connection.execute(text(question), values).scalar_one()
