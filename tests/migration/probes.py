"""Rows for the hot tables, and clients that use these tables all along and time each of their statements."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import NamedTuple

from psycopg.errors import Error
from sqlalchemy import create_engine, event, text
from sqlalchemy.pool import NullPool

__all__ = ["HOT", "Wait", "fill", "held_snapshot", "probing"]

HOT = ("job", "attempt", "shard", "ready")

_FILLERS = {
    "uuid": "gen_random_uuid()",
    "int8": "i",
    "int4": "1",
    "int2": "1",
    "bool": "false",
    "bytea": "'\\x00'",
    "float8": "0",
}
_KNOWN = {
    "recorded_us": "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint) + i",
    "group_id": "CAST('00000000-0000-0000-0000-000000000001' AS uuid)",
    "tenant_id": "'one'",
    "closed_us": "NULL",
}


class Wait(NamedTuple):
    """The statement that took longest, in seconds."""

    seconds: float
    statement: str


def insert_into(connection, table):
    """An INSERT of rows numbered :first to :last, with something in every column that must have something."""
    columns = connection.execute(
        text(
            "SELECT attname, typname FROM pg_attribute a JOIN pg_type t ON t.oid = atttypid WHERE attnum > 0"
            " AND attrelid = to_regclass(:table) AND attnotnull AND NOT attisdropped ORDER BY attnum"
        ),
        {"table": table},
    ).all()
    values = [_KNOWN.get(name) or _FILLERS.get(kind, "'x'") for name, kind in columns]
    names = ", ".join(name for name, _ in columns)
    numbers = "generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS i"
    return f"INSERT INTO {table} ({names}) SELECT {', '.join(values)} FROM {numbers}"


def fill(engine, rows):
    """So many rows in each hot table, and a hundredth of that waiting, which are never many."""
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO tenant (tenant_id, created_us) VALUES ('one', 1)"))
        for table, count in (("work_group", 1), *((table, rows) for table in HOT[:3]), ("ready", rows // 100)):
            connection.execute(text(insert_into(connection, table)), {"first": 1, "last": count})


class _Probe:
    """One client of one table."""

    def __init__(self, url, table, stopping):
        self.table = table
        self.inserted = 0
        self.longest = Wait(0.0, "none")
        self.failure = None
        self._stopping = stopping
        self._engine = create_engine(url, poolclass=NullPool)
        self._thread = threading.Thread(target=self._run)
        event.listen(self._engine, "before_cursor_execute", lambda *_: setattr(self, "_began", time.monotonic()))
        event.listen(self._engine, "after_cursor_execute", self._note)

    def start(self):
        self._thread.start()

    def join(self):
        self._thread.join()

    def _note(self, *call):
        self.longest = max(self.longest, Wait(time.monotonic() - self._began, call[2][:60]))

    def _run(self):
        try:
            with self._engine.connect() as connection:
                insert = text(insert_into(connection, self.table))
                key = "first_job_id" if self.table == "ready" else f"{self.table}_id"
                connection.commit()
                number = 10_000_000
                while not self._stopping.is_set():
                    number += 10
                    connection.execute(insert, {"first": number, "last": number + 9})
                    connection.execute(text(f"SELECT {key} FROM {self.table} LIMIT 20")).all()
                    if self.table == "shard":
                        connection.execute(
                            text("UPDATE shard SET claim_by_us = :n WHERE created_us = :n"), {"n": number}
                        )
                    connection.commit()
                    self.inserted += 10
                    time.sleep(0.02)
        except Error as error:
            self.failure = error


@contextmanager
def probing(url):
    """One client for each hot table; gives the list of them, to be looked at afterwards."""
    stopping = threading.Event()
    probes = [_Probe(url, table, stopping) for table in HOT]
    for probe in probes:
        probe.start()
    try:
        yield probes
    finally:
        stopping.set()
        for probe in probes:
            probe.join()


@contextmanager
def held_snapshot(engine, seconds, times=1):
    """As `ledger verify` has it: one snapshot over all of the ledger, for so long, and so many of them in turn."""
    opened = threading.Event()

    def hold():
        with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            for _ in range(times):
                for table in ("attempt", "job_outcome", "shard"):
                    connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
                opened.set()
                time.sleep(seconds)
                connection.rollback()

    thread = threading.Thread(target=hold)
    thread.start()
    opened.wait()
    try:
        yield
    finally:
        thread.join()
