"""What a worker's process loads: no database driver, and no framework of the broker's door."""

from __future__ import annotations

import subprocess
import sys

FOREIGN = ("sqlalchemy", "psycopg", "sqlite3", "alembic", "litestar", "uvicorn", "highspy")


def test_the_worker_command_loads_no_database_and_no_door():
    roots = "sorted({name.partition('.')[0] for name in sys.modules})"
    code = f"import sys, broker.cli.app, broker.cli.worker; print(*{roots})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    loaded = set(ran.stdout.split())
    assert {"broker", "workers", "celery", "httpx"} <= loaded
    assert not loaded & set(FOREIGN)
