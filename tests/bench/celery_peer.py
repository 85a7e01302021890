"""The peer: Celery in one process on its memory transport, one task and one committed SQLite row per job."""

from __future__ import annotations

import sqlite3
import sys
import threading
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_shutdown

from tests.bench.workload import request_body

__all__ = ["main"]


def main(database: Path, jobs_count: int) -> None:
    """Run so many jobs to their durable rows, then end."""
    database.unlink(missing_ok=True)
    connection = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE done (id INTEGER PRIMARY KEY, body TEXT, reply TEXT)")
    finished = threading.Event()
    turn = threading.Lock()
    app = Celery("peer", broker="memory://")
    app.conf.update(task_ignore_result=True, worker_prefetch_multiplier=16, worker_hijack_root_logger=False)
    app.conf.broker_transport_options = {"polling_interval": 0.02}

    @app.task(name="peer.run")
    def run(number: int, body: str) -> None:
        reply = body[-315:]
        with turn:
            connection.execute("INSERT INTO done VALUES (?, ?, ?)", (number, body, reply))
            count = connection.execute("SELECT max(id) FROM done").fetchone()[0]
        if count + 1 >= jobs_count:
            finished.set()

    worker: Any = app.WorkController(pool_cls="threads", concurrency=4, without_gossip=True, without_mingle=True)
    threading.Thread(target=worker.start, daemon=True).start()
    time.sleep(0.5)
    for number in range(jobs_count):
        run.delay(number, request_body(number).decode())
    finished.wait(300)
    while connection.execute("SELECT count(*) FROM done").fetchone()[0] < jobs_count:
        time.sleep(0.01)
    worker_shutdown.send(sender=None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
