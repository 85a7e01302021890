"""SQLite: one process, one writer thread with group commit, read-only connections for readers.

The writer takes whatever gathered while the last commit ran into the next one. A durable commit survives a power
cut: its caller hears of it when the write-ahead log is on disk, and the writer commits on meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import QueuePool

from broker.database.connection import ROW_WRITER
from broker.database.drivers.sqlite.log_syncing import Committed, LogSyncer
from broker.database.drivers.sqlite.rows import TextRows
from broker.domain.errors import BrokerError, UsageError

__all__ = ["SqliteDatabase", "is_folder_in_use", "lock_folder", "open_read_only"]

T = TypeVar("T")

_GROUP_MAX = 64
_WRITER_CACHE_KIB = 4 * 1024
_CHECKPOINT_PAGES = 4_000  # 16 MB of log: pages that change often are then copied over once, not four times
_READER_CACHE_KIB = 512  # each reader has its own; what they read is mostly what was just written
_STATEMENTS_KEPT = 256  # a connection; all that the writer asks in its rounds, as each is parsed anew otherwise

# Said how they are bound, for which the driver else looks at each value, for longer than it takes to bind it.
sqlite3.register_adapter(bytes, bytes.__bytes__)
sqlite3.register_adapter(type(None), {None: None}.get)
sqlite3.register_adapter(bool, {False: 0, True: 1}.get)


def lock_folder(folder: Path) -> int:
    """Take the one-process lock of a data folder; it goes when the process does. Returns the file descriptor.

    Raises UsageError where the folder can't be made or written, BrokerError where another process has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # it will hold prompts and replies
        descriptor = os.open(folder / "broker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"can't write in the data folder {folder}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise BrokerError(
            f"{folder} is in use by another broker (process {holder}): stop it, or name another folder with --data"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def is_folder_in_use(folder: Path) -> bool:
    """Whether a process has the data folder's lock just now."""
    try:
        descriptor = os.open(folder / "broker.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class _Unit(NamedTuple):
    """One caller's work."""

    work: Callable[[Connection], Any]
    future: Future[Any]
    durable: bool


class SqliteDatabase:
    """The `Database` port on one SQLite file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.engine: Engine = _open(path, begin="BEGIN IMMEDIATE", query_only=False)
        self._readers: Engine = _open(path, begin="BEGIN", query_only=True)
        self._pending: queue.SimpleQueue[_Unit | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write_groups, name="database-writer", daemon=True)
        self._log = LogSyncer(path.with_name(f"{path.name}-wal"))
        self._closed = False
        self._door = threading.Lock()  # nothing may queue behind the mark that ends the writer
        self._writer.start()

    @property
    def is_running(self) -> bool:
        """Whether its threads live. Where one has ended, every write waits for ever: the process must end."""
        return self._closed or (self._writer.is_alive() and self._log.is_running)

    def use_write_ahead_log(self) -> None:
        """Readers and the writer no longer wait for each other. Only for a database known to be ours: it is kept."""
        with self.engine.connect() as connection:
            connection.connection.driver_connection.execute("PRAGMA journal_mode=WAL")  # type: ignore[union-attr] # (the driver's connection is there inside the block)

    def write(self, work: Callable[[Connection], T], *, durable: bool = True, idempotent: bool = False) -> T:  # noqa: ARG002 (a commit here is never in doubt)
        """See `Database.write`."""
        future: Future[T] = Future()
        with self._door:
            if self._closed:
                raise BrokerError("the database is closed")
            if self._log.failure:
                raise self._log.failure
            self._pending.put(_Unit(work, future, durable))
        return future.result()

    def read(self, work: Callable[[Connection], T]) -> T:
        """See `Database.read`."""
        with self._readers.begin() as connection:
            return work(connection)

    def close(self) -> None:
        """See `Database.close`."""
        with self._door:
            self._closed = True
            self._pending.put(None)
        self._writer.join()
        self._log.close()
        self._readers.dispose()
        self.engine.dispose()

    def _write_groups(self) -> None:
        group = self._next_group()
        if not group:
            return  # nothing was ever written, as where the file turned out not to be a database of ours
        with self.engine.connect() as connection:
            log = self._log if _leaves_syncing_to_us(connection) else None
            while group:
                _commit_group(connection, group, log)
                group = self._next_group()

    def _next_group(self) -> list[_Unit]:
        """What has gathered; empty once closed and drained."""
        first = self._pending.get()
        if first is None:
            return []
        group = [first]
        while len(group) < _GROUP_MAX:
            try:
                following = self._pending.get_nowait()
            except queue.Empty:
                break
            if following is None:
                self._pending.put(None)
                break
            group.append(following)
        return group


def _leaves_syncing_to_us(connection: Connection) -> bool:
    """Have commits no longer wait for the disk, where there is a log to be put on it."""
    driver = connection.connection.driver_connection
    assert driver is not None  # noqa: S101 (it is there as long as the connection is)
    if driver.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        return False
    driver.execute("PRAGMA synchronous=NORMAL")
    return True


def _commit_group(connection: Connection, group: list[_Unit], log: LogSyncer | None) -> None:
    """All of the group in one transaction; if that fails, each in its own, so that only the culprit's caller hears.

    Without a `log` to be put on disk, a commit has waited for it.
    """
    try:
        with connection.begin():
            values = [unit.work(connection) for unit in group]
    except BaseException as error:  # noqa: BLE001 (it belongs to a caller, who gets it: this thread goes on for the others)
        open_still = connection.connection.driver_connection
        if open_still is not None and open_still.in_transaction:
            open_still.rollback()  # a COMMIT that fails leaves its transaction open, in the way of all that follow
        if len(group) == 1:
            group[0].future.set_exception(error)
            return
        for member in group:
            _commit_group(connection, [member], log)
        return
    durable = []
    for unit, value in zip(group, values, strict=True):
        if unit.durable and log is not None:
            durable.append(Committed(unit.future, value))
        else:
            unit.future.set_result(value)
    if durable and log is not None:
        log.put(durable)


def _open(path: Path, *, begin: str, query_only: bool) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=QueuePool,
        pool_size=4,
        max_overflow=8,
        connect_args={"check_same_thread": False, "cached_statements": _STATEMENTS_KEPT},
        hide_parameters=True,  # an error's text would otherwise quote prompts and replies
        execution_options={ROW_WRITER: TextRows()},
    )

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
        for pragma in (
            "synchronous=FULL",
            "recursive_triggers=ON",  # else INSERT OR REPLACE would slip past the ledger's triggers
            "foreign_keys=ON",
            "busy_timeout=5000",
            f"wal_autocheckpoint={_CHECKPOINT_PAGES}",
            f"cache_size=-{_READER_CACHE_KIB if query_only else _WRITER_CACHE_KIB}",
            *(("query_only=ON",) if query_only else ()),
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def open_read_only(path: Path) -> Engine:
    """An engine that can't change the database, also beside the broker that works on it."""
    return _open(path, begin="BEGIN", query_only=True)
