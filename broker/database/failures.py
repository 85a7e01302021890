"""What a failure of either database means for who asked: it passes by itself, or the disk is full."""

from __future__ import annotations

from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError

from broker.domain.errors import BrokerError

__all__ = ["is_disk_full", "is_passing"]

_DISK_FULL, _READ_ONLY = "53100", "25006"  # PostgreSQL's SQLSTATEs: its disk is full; it is a standby


def is_passing(error: BaseException) -> bool:
    """Whether the same write may go well later: the database could not work, rather than would not take it."""
    if isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == _READ_ONLY:
        return True
    return isinstance(error, OperationalError | BrokerError)


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed because the disk is full, which passes; nothing of it was kept."""
    if not isinstance(error, DatabaseError):
        return False
    return getattr(error.orig, "sqlstate", None) == _DISK_FULL or "disk is full" in str(error.orig)
