"""Commit marks: how it is found out, for good, whether a commit was kept whose answer got lost.

Each transaction that must not happen twice moves a row of its own, its slot, from one number to the next, in the
same message as its COMMIT and only if the row still has the number that it expects. To find out, whoever lost the
answer moves the row on by two: that waits for a commit under way, and makes one that is yet to arrive fail. From
then on the number's parity says what became of it, also after a crash or a failover, for the mark comes and goes
with the transaction's other changes. (`pg_xact_status` can't say it: ids may be used again after a crash.)
"""

from __future__ import annotations

import threading
import time

import msgspec
import psycopg
from sqlalchemy import Connection, delete

from broker.database.drivers.postgres.connections import WatchedConnection, run
from broker.database.tables import commit_mark
from broker.domain.ids import new_id

__all__ = ["CommitMark", "CommitMarks", "MarkLost", "forget_old_marks"]

_KEPT_US = 7 * 86_400 * 1_000_000
_MARK_IS_NOT_AS_EXPECTED = "22012"


class MarkLost(Exception):
    """The slot's row is not as expected, so the commit was refused; another try begins with its number of now."""


class CommitMark(msgspec.Struct):
    """A row of `commit_mark`. At most one transaction at a time uses it."""

    name: str
    number: int | None = None  # as it is in the database, where that is known

    def commit(self, driver: WatchedConnection) -> None:
        """Move the mark and commit, in one message. Raises MarkLost, or what else the database said."""
        assert self.number is not None  # noqa: S101 (it was prepared)
        moved = (
            f"WITH moved AS (UPDATE commit_mark SET mark = {self.number + 1}, used_us = {_now_us()}"  # noqa: S608 (our own numbers)
            f" WHERE slot = '{self.name}' AND mark = {self.number} RETURNING 1) SELECT 1 / count(*) FROM moved"
        )
        try:
            run(driver, f"{moved}; COMMIT")
        except psycopg.Error as error:
            if error.sqlstate != _MARK_IS_NOT_AS_EXPECTED:
                raise
            self.number = None
            raise MarkLost from error
        self.number += 1

    def prepare(self, driver: WatchedConnection) -> None:
        """Outside of any transaction: learn the number, and make the row where there is none."""
        if self.number is None:
            found = run(
                driver,
                f"INSERT INTO commit_mark (slot, mark, used_us) VALUES ('{self.name}', 0, {_now_us()})"  # noqa: S608 (as above)
                " ON CONFLICT (slot) DO UPDATE SET used_us = excluded.used_us RETURNING mark",
            ).fetchone()
            assert found is not None  # noqa: S101 (it returns its row)
            self.number = found[0]

    def was_kept(self, driver: WatchedConnection) -> bool:
        """On another connection: whether the commit whose answer was lost is there; it can't come after this."""
        assert self.number is not None  # noqa: S101 (it was prepared)
        found = run(
            driver,
            f"UPDATE commit_mark SET mark = mark + 2 WHERE slot = '{self.name}' RETURNING mark",  # noqa: S608 (as above)
        ).fetchone()
        if found is None:
            raise MarkLost
        before, self.number = self.number, found[0]
        return bool((found[0] - before) % 2)


class CommitMarks:
    """The slots of one process: as many as it ever had writes at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[CommitMark] = []

    def take(self) -> CommitMark:
        """A slot that nobody uses."""
        with self._lock:
            return self._free.pop() if self._free else CommitMark(new_id().hex())

    def give_back(self, slot: CommitMark) -> None:
        """It may be used again: what became of its last transaction is known."""
        with self._lock:
            self._free.append(slot)

    def are_there(self) -> bool:
        """Whether the process has rows in the table."""
        return bool(self._free)

    def remove(self, driver: WatchedConnection) -> None:
        """Take the process's rows out of the table, as it ends."""
        with self._lock:
            names, self._free = [slot.name for slot in self._free], []
        driver.execute("DELETE FROM commit_mark WHERE slot = ANY(%s::uuid[])", [names])


def forget_old_marks(connection: Connection, now_us: int) -> int:
    """Remove the rows of processes that ended without a word more than a week ago; how many they were.

    For the keeper, every day or so. A process that wakes after longer than that makes its row anew.
    """
    old = delete(commit_mark).where(commit_mark.c.used_us < now_us - _KEPT_US)
    return connection.execute(old).rowcount


def _now_us() -> int:
    return time.time_ns() // 1_000
