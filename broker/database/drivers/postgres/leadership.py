"""Who does what where several processes run the same role on PostgreSQL; on SQLite there is only one.

`Leadership` says which process of a role works, so that the others stand by; `fencing.alone` makes sure of it
inside a transaction. `lock_stream` gives each writer of the ledger a durable stream that nobody else writes.
"""

from __future__ import annotations

import threading
import time

import psycopg
import structlog

from broker.database.connection import Database
from broker.database.drivers.postgres.database import PostgresDatabase
from broker.database.drivers.postgres.sessions import Session
from broker.database.fencing import lock_number
from broker.domain.errors import BrokerError

__all__ = ["Leadership", "StreamLock", "lock_stream"]

_log = structlog.get_logger(__name__)

_TRY_SECONDS = 1.0
_SLOTS_MAX = 1_000


class Leadership:
    """One process of a role leads at a time, with all its threads. Without a URL, as on SQLite, it always leads."""

    def __init__(self, url: str | None, role: str) -> None:
        self._role = role
        self._session = Session(url, f"leader {role}") if url else None
        self._lock = threading.Lock()
        self._leads = False
        self._next_try = 0.0

    def is_leader(self) -> bool:
        """Whether this process leads; takes over where nobody does. Cheap enough to ask in every loop."""
        if self._session is None:
            return True
        with self._lock:
            return self._still_leads(self._session) or self._takes_over(self._session)

    def _still_leads(self, session: Session) -> bool:
        if self._leads and not session.is_alive():
            self._leads = False
            _log.warning("leadership_lost", role=self._role)
        return self._leads

    def _takes_over(self, session: Session) -> bool:
        now = time.monotonic()
        if now < self._next_try:
            return False
        self._next_try = now + _TRY_SECONDS
        self._leads = _try_lock(session, lock_number("leader", self._role))
        if self._leads:
            _log.info("leadership_taken", role=self._role)
        return self._leads

    def close(self) -> None:
        """Make room for another."""
        with self._lock:
            self._leads = False
            if self._session:
                self._session.close()


class StreamLock:
    """A durable place of its own for a writer of the ledger: `name`, such as recorder-0, names its stream.

    Used by one thread. See `broker.ledger.streams.StreamSlot`.
    """

    def __init__(self, role: str, name: str, session: Session | None) -> None:
        self.name = name
        self._role = role
        self._session = session
        self._held = True

    def hold(self) -> str:
        """The name of the slot that is held now: the same, also over a lost session, unless another process has it.

        Without it two would write one stream. The ledger stays whole even so, for the later of two commits runs
        again, but each would hold up the other. Raises BrokerError where the database can't be asked.
        """
        if self._session is None or (self._held and self._session.is_alive()):
            return self.name
        self._held = False
        if not _try_lock(self._session, lock_number("slot", self.name)):
            lost, self.name = self.name, _first_free(self._session, self._role)
            _log.warning("slot_changed", slot=self.name, lost=lost)
        self._held = True
        return self.name

    def close(self) -> None:
        """Leave it to others."""
        self._held = False
        if self._session:
            self._session.close()


def lock_stream(database: Database, role: str) -> StreamLock:
    """The first of the role's slots that nobody has. Raises BrokerError where the database can't be asked."""
    if not isinstance(database, PostgresDatabase):
        return StreamLock(role, f"{role}-0", None)
    session = Session(database.url, f"slot {role}")
    try:
        return StreamLock(role, _first_free(session, role), session)
    except BaseException:
        session.close()
        raise


def _first_free(session: Session, role: str) -> str:
    """The slot is locked by the session from here on."""
    for number in range(_SLOTS_MAX):
        name = f"{role}-{number}"
        if _try_lock(session, lock_number("slot", name)):
            _log.info("slot_taken", slot=name)
            return name
        if not session.is_alive():
            break
    raise BrokerError(f"the database could not be asked for a place for another {role}")


def _try_lock(session: Session, number: int) -> bool:
    """Whether the lock is ours now; False also where nobody can say."""
    driver = session.driver()
    session.settle()
    if driver is None or not session.is_alive():
        return False
    try:
        found = driver.execute("SELECT pg_try_advisory_lock(%s)", [number]).fetchone()
    except psycopg.Error:
        session.close()
        return False
    return bool(found and found[0])
