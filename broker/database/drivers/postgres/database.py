"""PostgreSQL: many processes, each work in a transaction of its own on a pooled connection.

What passes by itself (a lost connection, a failover, a deadlock, another process that was faster) is tried again
for a while. A commit whose answer got lost is looked up (see `marks`), so that work is kept exactly once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
import psycopg
import structlog
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import NullPool, Pool, QueuePool

from broker.database.connection import ROW_WRITER
from broker.database.drivers.postgres.connections import (
    SessionLimits,
    WatchedConnection,
    connect,
    is_lost,
    place_of,
    roll_back,
    run,
)
from broker.database.drivers.postgres.copying import CopiedRows
from broker.database.drivers.postgres.marks import CommitMark, CommitMarks, MarkLost
from broker.database.drivers.postgres.patience import Patience, is_connection_lost, may_pass_at_once
from broker.database.history import INSTALLED
from broker.database.schema import require_current
from broker.domain.errors import BrokerError
from broker.domain.ids import new_id
from broker.rules.schema_fit import session_name

__all__ = ["PostgresDatabase", "PostgresTerms", "open_postgres"]

T = TypeVar("T")

_log = structlog.get_logger(__name__)

_RECYCLE_SECONDS = 1_800


class PostgresTerms(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the server a process takes, and how long it waits. Reads and writes have a pool each."""

    name: str = "broker"
    """Its part of `application_name`, such as the role."""
    pool_size: int = 8
    pool_seconds: float = 10.0
    retry_seconds: float = 30.0
    statement_seconds: float = 60.0
    read_seconds: float = 600.0
    idle_in_transaction_seconds: float = 60.0


class _NotKept(Exception):
    """The connection was lost while it committed, and nothing of it is there."""


class _InDoubt(Exception):
    """The connection was lost while it committed; `value` is what the work returned."""

    def __init__(self, value: Any) -> None:  # noqa: ANN401 (whatever the work returns)
        super().__init__()
        self.value = value


class PostgresDatabase:
    """The `Database` port on one PostgreSQL database. It never changes the schema; see `open_postgres`."""

    def __init__(self, url: str, terms: PostgresTerms | None = None) -> None:
        self.url = url
        self._terms = terms = terms or PostgresTerms()
        self._writers = self._open(terms.statement_seconds, QueuePool)
        self._readers = self._open(terms.read_seconds, QueuePool)
        self.engine: Engine = self._open(0.0, NullPool)
        self._marks = CommitMarks()
        self._lost: set[str] = set()  # names of sessions whose end we didn't see; they may still hold locks
        self._idle = threading.Condition()
        self._works = 0
        self._closing = threading.Event()

    def write(self, work: Callable[[Connection], T], *, durable: bool = True, idempotent: bool = False) -> T:
        """See `Database.write`. It runs on the caller's thread."""
        with self._at_work():
            return self._persist(lambda: self._write_once(work, durable, idempotent))

    def read(self, work: Callable[[Connection], T]) -> T:
        """See `Database.read`. Where the connection is lost, `work` runs again on another."""
        with self._at_work():
            return self._persist(lambda: self._read_once(work), writing=False)

    def close(self) -> None:
        """See `Database.close`."""
        self._closing.set()
        with self._idle:
            self._idle.wait_for(lambda: self._works == 0)
        try:
            if self._marks.are_there():
                with self._connected(self._writers) as (_, driver):
                    self._marks.remove(driver)
        except (psycopg.Error, DBAPIError, BrokerError):
            _log.info("marks_left")  # they are swept some time later
        for engine in (self._writers, self._readers, self.engine):
            engine.dispose()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        with self._idle:
            if self._closing.is_set():
                raise BrokerError("the database is closed")
            self._works += 1
        try:
            yield
        finally:
            with self._idle:
                self._works -= 1
                self._idle.notify_all()

    def _persist(self, once: Callable[[], T], *, writing: bool = True) -> T:
        patience = Patience(self._terms.retry_seconds, self._closing)
        while True:
            try:
                return once()
            except (DBAPIError, psycopg.Error, MarkLost, _NotKept) as error:
                if isinstance(error, _NotKept):
                    failure: Exception = BrokerError("the connection to the database was lost")
                elif may_pass_at_once(error, writing=writing):
                    failure = _worded(error)
                else:
                    raise _worded(error) from error
                if is_connection_lost(error):
                    self._forget_connections()
                if not patience.outlasts():
                    raise failure from error
                _log.info("database_retried", reason=_reason(error))

    def _write_once(self, work: Callable[[Connection], T], durable: bool, idempotent: bool) -> T:
        if idempotent:
            return self._transact(work, durable, None)
        slot = self._marks.take()
        try:
            return self._transact(work, durable, slot)
        except _InDoubt as doubt:
            if not self._was_kept(slot):
                raise _NotKept from doubt.__cause__
            value: T = doubt.value
            return value
        finally:
            self._marks.give_back(slot)

    def _transact(self, work: Callable[[Connection], T], durable: bool, slot: CommitMark | None) -> T:
        with self._connected(self._writers) as (connection, driver):
            self._end_lost_sessions(driver)
            if slot:
                slot.prepare(driver)
            run(driver, "BEGIN" if durable else "BEGIN; SET LOCAL synchronous_commit = off")
            value = work(connection)
            if driver.info.transaction_status is TransactionStatus.INERROR:
                raise BrokerError("a unit of work went on after one of its statements had failed")
            try:
                if slot:
                    slot.commit(driver)
                else:
                    run(driver, "COMMIT")
            except psycopg.Error as error:
                if slot and is_lost(driver):
                    raise _InDoubt(value) from error
                raise
            return value

    def _was_kept(self, slot: CommitMark) -> bool:
        """Whether a commit is there whose answer was lost, also while the process ends."""
        self._forget_connections()
        patience = Patience(self._terms.retry_seconds)
        while True:
            try:
                with self._connected(self._writers) as (_, driver):
                    kept = slot.was_kept(driver)
                _log.info("commit_looked_up", kept=kept)
                return kept
            except (DBAPIError, psycopg.Error, MarkLost, BrokerError) as error:
                self._forget_connections()
                if isinstance(error, MarkLost) or not patience.outlasts():
                    slot.number = None
                    raise BrokerError(
                        "the connection to the database was lost while it committed, and it could not be asked"
                        " whether that was kept"
                    ) from error

    def _read_once(self, work: Callable[[Connection], T]) -> T:
        with self._connected(self._readers) as (connection, driver):
            run(driver, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            value = work(connection)
            run(driver, "COMMIT")
            return value

    @contextmanager
    def _connected(self, engine: Engine) -> Iterator[tuple[Connection, WatchedConnection]]:
        """A connection outside of any transaction; whatever was begun on it and not ended is rolled back."""
        try:
            connection = engine.connect()
        except PoolTimeout as error:
            raise BrokerError(f"no connection to the database became free in {self._terms.pool_seconds:g} s") from error
        with connection:
            driver = connection.connection.driver_connection
            assert isinstance(driver, WatchedConnection)  # noqa: S101 (our own pools hold nothing else)
            try:
                yield connection, driver
            except psycopg.Error as error:
                raise DBAPIError.instance(
                    None, None, error, psycopg.Error, hide_parameters=True, dialect=engine.dialect
                ) from error
            finally:
                roll_back(driver)
                if is_lost(driver):
                    self._lost.add(driver.name)
                    connection.invalidate()

    def _forget_connections(self) -> None:
        """What else lies in the pools leads to where nobody answers any more."""
        self._writers.dispose()
        self._readers.dispose()

    def _end_lost_sessions(self, driver: WatchedConnection) -> None:
        """A session whose client is gone may not know it yet, and stand in everyone's way with its locks."""
        if not self._lost:
            return
        names = list(self._lost.copy())
        driver.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = ANY(%s)"
            " AND usename = current_user AND datname = current_database()",
            [names],
        )
        self._lost.difference_update(names)  # another thread may have been as fast

    def _open(self, statement_seconds: float, pool: type[Pool]) -> Engine:
        terms, of_pool, revision = self._terms, {}, INSTALLED.build.needed
        if pool is QueuePool:
            of_pool = {
                "pool_size": terms.pool_size,
                "max_overflow": 0,
                "pool_timeout": terms.pool_seconds,
                "pool_use_lifo": True,  # so that few are used often, and the rest grow old
                "pool_recycle": _RECYCLE_SECONDS,
            }

        def creator() -> WatchedConnection:
            # By this name a session is found again whose connection was lost, and a build that may not be broken.
            name = session_name(terms.name, revision, new_id().hex()[-20:])
            # Whoever reads may think for as long as one of its statements may take.
            idle_seconds = max(terms.idle_in_transaction_seconds, statement_seconds)
            driver = connect(self.url, SessionLimits(name, statement_seconds, idle_seconds))
            driver.name = name
            if pool is NullPool:
                driver.autocommit = False  # the migrations' transactions begin and end as SQLAlchemy's do
            return driver

        return create_engine(
            place_of(self.url),
            poolclass=pool,
            creator=creator,
            hide_parameters=True,  # an error's text would otherwise quote prompts and replies
            use_native_hstore=False,
            execution_options={ROW_WRITER: CopiedRows()},
            **of_pool,
        )


def _worded(error: Exception) -> Exception:
    return BrokerError("the database kept refusing a commit mark") if isinstance(error, MarkLost) else error


def _reason(error: Exception) -> str:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return f"{type(cause).__name__} {getattr(cause, 'sqlstate', None) or ''}".strip()


def open_postgres(url: str, *, pool_size: int = 8, name: str = "broker", wait_seconds: float = 0.0) -> PostgresDatabase:
    """The database, if its schema serves this program. Raises BrokerError, in one sentence, where it doesn't.

    It is never upgraded by the way; see `broker.database.migrating`. A server that can't be reached, perhaps since it
    is only starting, is tried for `wait_seconds`.
    """
    database = PostgresDatabase(url, PostgresTerms(name=name, pool_size=pool_size))
    patience = Patience(wait_seconds)
    try:
        while True:
            try:
                require_current(database.engine)
            except BrokerError as error:
                if error.__cause__ is None or not is_connection_lost(error.__cause__) or not patience.outlasts():
                    raise
            else:
                return database
    except BaseException:
        database.close()
        raise
