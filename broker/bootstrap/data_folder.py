"""The database of a data folder: for commands that need it and nothing else of the embedded form."""

from __future__ import annotations

from pathlib import Path

from broker.database.drivers.sqlite.database import SqliteDatabase
from broker.database.migrating import upgrade

__all__ = ["DATABASE_FILE", "open_database", "own_files"]

DATABASE_FILE = "broker.db"


def own_files(data: Path) -> list[Path]:
    """What the broker itself keeps in a data folder."""
    names = ["broker.log", "broker.lock", "token", "url"]
    return [*(data / name for name in names), *data.glob(f"{DATABASE_FILE}*"), *(data / "keys").glob("*")]


def open_database(data: Path) -> SqliteDatabase:
    """The database of a data folder, brought up to this program's schema."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = SqliteDatabase(data / DATABASE_FILE)
    try:
        upgrade(database.engine)
        database.use_write_ahead_log()
    except BaseException:
        database.close()
        raise
    return database
