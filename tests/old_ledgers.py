"""Ledgers that earlier builds wrote, brought up to this build's schema: what they hold is in their folder's README."""

from __future__ import annotations

import gzip
import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from broker.database.migrating import SchemaState, upgrade

__all__ = ["FIRST", "old_proofs", "restore_checkpoints", "restore_postgres", "restore_sqlite"]

FIRST = Path(__file__).parent / "fixtures/ledgers/e1cf361"
"""Of the last build that wrote nothing but rows of version 1."""


def restore_sqlite(folder: Path, *, upgraded: bool = True) -> Path:
    """A data folder as that build left it, with its checkpoints; the database's path."""
    restore_checkpoints("sqlite", folder)
    path = folder / "broker.db"
    path.write_bytes(_upgraded_sqlite() if upgraded else _old_sqlite())
    return path


def _old_sqlite() -> bytes:
    return gzip.decompress((FIRST / "sqlite/broker.db.gz").read_bytes())


@cache
def _upgraded_sqlite() -> bytes:
    """Upgraded once: nearly a hundred tests begin with a copy."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "broker.db"
        path.write_bytes(_old_sqlite())
        engine = create_engine(f"sqlite:///{path}", poolclass=NullPool)
        assert upgrade(engine) is SchemaState.OLDER
        engine.dispose()
        assert [one.name for one in Path(folder).iterdir()] == [path.name]  # all of it is in the one file
        return path.read_bytes()


def restore_postgres(url: str, folder: Path, *, upgraded: bool = True) -> None:
    """Fill an empty database with what that build left in its; the folder gets the checkpoints."""
    restore_checkpoints("postgresql", folder)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(gzip.decompress((FIRST / "postgresql/dump.sql.gz").read_bytes()))
    if upgraded:
        engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"), poolclass=NullPool)
        assert upgrade(engine) is SchemaState.OLDER
        engine.dispose()


def restore_checkpoints(kind: str, folder: Path) -> None:
    """Those that build kept beside this kind of database."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(FIRST / kind / "checkpoints.jsonl", folder)


def old_proofs(kind: str) -> list[dict[str, Any]]:
    """What that build's `broker ledger prove` printed of this kind of database."""
    return list(json.loads(gzip.decompress((FIRST / kind / "proofs.json.gz").read_bytes())))
