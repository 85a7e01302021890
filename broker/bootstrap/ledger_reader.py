"""Reading the ledger, of PostgreSQL or of a data folder, also while a broker works on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from broker.bootstrap.data_folder import DATABASE_FILE
from broker.database.connection import Connection
from broker.database.drivers.sqlite.database import open_read_only
from broker.database.schema import require_current
from broker.domain.errors import BrokerError

__all__ = ["open_reader", "read_ledger"]

T = TypeVar("T")


def read_ledger(data: Path, database_url: str | None, work: Callable[[Connection], T]) -> T:
    """What `work` finds in PostgreSQL where its URL is given, else in the data folder; one consistent snapshot.

    Raises BrokerError when there is none of ours.
    """
    if not database_url:
        with open_reader(data) as connection:
            return work(connection)
    from broker.database.drivers.postgres.database import open_postgres  # noqa: PLC0415 (a folder needs no PostgreSQL)

    database = open_postgres(database_url, name="broker ledger")
    try:
        return database.read(work)
    finally:
        database.close()


@contextmanager
def open_reader(data: Path) -> Iterator[Connection]:
    """One consistent snapshot of the folder's database. Raises BrokerError when there is none of ours."""
    path = data / DATABASE_FILE
    if not path.exists():
        raise BrokerError(f"{data} holds no ledger yet: run a batch first, or name its folder with --data")
    engine = open_read_only(path)
    try:
        require_current(engine)
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()
