"""An empty database of each kind for each test, and a look at PostgreSQL's partitions."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.pool import NullPool

from broker.database.history import INSTALLED, History


@pytest.fixture
def sqlite_engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'broker.db'}", poolclass=NullPool)
    yield engine
    engine.dispose()


@pytest.fixture
def postgres_engine(postgres_url: str) -> Iterator[Engine]:
    """An empty schema of the test's own, with a name that must be quoted."""
    schema = f"Test {uuid.uuid4().hex[:8]}"
    admin = create_engine(postgres_url, poolclass=NullPool)
    with admin.begin() as connection:
        connection.execute(text(f'CREATE SCHEMA "{schema}"'))
    engine = create_engine(postgres_url, poolclass=NullPool)

    @event.listens_for(engine, "connect")
    def use_schema(driver_connection: Any, _record: object) -> None:
        driver_connection.execute(f'SET search_path TO "{schema}"')
        driver_connection.execute("SET synchronous_commit TO off")  # the disk is not what is tested
        driver_connection.commit()

    yield engine
    engine.dispose()
    with admin.begin() as connection:
        connection.execute(text(f'DROP SCHEMA "{schema}" CASCADE'))


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest) -> Engine:
    # Asked for by name, so that a missing PostgreSQL skips one half only.
    return request.getfixturevalue(f"{request.param}_engine")


@pytest.fixture
def later(tmp_path: Path) -> Callable[..., History]:
    """Our history with further revisions: by file name, the body of `upgrade` and what else it declares."""
    folder = tmp_path / "migrations"
    shutil.copytree(Path(str(files("migrations"))), folder, ignore=shutil.ignore_patterns("__pycache__"))

    def extend(**revisions: str) -> History:
        for name, words in revisions.items():
            number, before = name.strip("_")[:4], INSTALLED.build.revisions[-1]
            if added := sorted(path.name[:4] for path in (folder / "versions").glob("[0-9]*.py")):
                before = added[-1]
            declared, _, body = words.rpartition("---")
            (folder / "versions" / f"{name.strip('_')}.py").write_text(
                f'"""What {number} does."""\n\nimport sqlalchemy as sa\nfrom alembic import op\n'
                "from migrations.online import OnlineIndex, create_on_sqlite\n\n"
                f'revision = "{number}"\ndown_revision = "{before}"\n{declared.strip()}\n\n\n'
                f"def upgrade():\n    {body.strip()}\n"
            )
        return History(folder)

    return extend


@pytest.fixture(scope="session")
def partitions_of() -> Callable[[Connection, str], list[str]]:
    """The names of a table's partitions, in order."""

    def find(connection: Connection, table: str) -> list[str]:
        question = (
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
            " WHERE i.inhparent = to_regclass(:name) ORDER BY 1"
        )
        return list(connection.execute(text(question), {"name": table}).scalars())

    return find
