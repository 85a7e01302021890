"""Reading the ledger of a data folder, also while a broker works on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker.bootstrap.embedded import DATABASE_FILE
from broker.database.connection import Connection
from broker.database.migrating import require_current
from broker.database.sqlite import open_read_only
from broker.domain.errors import BrokerError

__all__ = ["open_reader"]


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
