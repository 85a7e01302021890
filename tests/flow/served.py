"""The served form as a user runs it: commands, roles and workers as processes."""

from __future__ import annotations

import os
import time

import psycopg

from tests.flow.forkserver import Forked, run
from tests.flow.program import ROOT, kill_group, lane
from tests.services.process import free_port

SECONDS_MAX = 60.0


def a_body(text):
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


class Served:
    """`broker serve` with all roles, and lanes' workers; `bus_url` is the lanes' bus and the producers'.

    With one lane, or those of `catalog`; producers then have no bus, so that it may be one that others use too.
    """

    def __init__(self, folder, database_url, bus_url, catalog="", environment=None):
        self.folder, self.database_url, self.bus_url = folder, database_url, bus_url
        self.port = free_port()
        self.data = folder / "data"
        fields = {"bus_url": self.bus_url, "slots": 2, "shard_jobs_max": 16, "jobs_per_second": 200.0}
        (folder / "lanes.toml").write_text(
            catalog or lane("tpu", "google-tpu", options={"delay_seconds": 0.05}, **fields)
        )
        clean = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
        self.environment = clean | {
            "PYTHONPATH": str(ROOT),
            "BROKER_DATABASE_URL": database_url,
            "BROKER_DATA": str(self.data),
            "BROKER_CATALOG": str(folder / "lanes.toml"),
            **({} if catalog else {"BROKER_JOBS_BUS_URL": self.bus_url}),
            **(environment or {}),
        }
        self.processes = []
        self.broker("db", "upgrade")

    def broker(self, *words, code=0):
        done = run(words, cwd=self.folder, env=self.environment)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, *words, module="broker.cli"):
        with (self.folder / f"{words[0]}.log").open("a") as log:
            process = Forked(words, cwd=self.folder, env=self.environment, stdout=log, stderr=log, program=module)
        self.processes.append(process)
        return process

    def serve(self):
        (self.data / "url").unlink(missing_ok=True)
        process = self.start("serve", "--port", str(self.port))
        self.until((self.data / "url").exists, "serve listens")
        return process

    def until(self, condition, what):
        deadline = time.monotonic() + SECONDS_MAX
        while not condition():
            assert time.monotonic() < deadline, f"not within {SECONDS_MAX:g} s: {what}\n{self.logs()}"
            time.sleep(0.02)

    def logs(self):
        return "\n".join(path.read_text()[-3_000:] for path in self.folder.glob("*.log"))

    def one(self, statement):
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(statement).fetchone()[0]

    def rows(self, statement):
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(statement).fetchall()

    def close(self):
        for process in self.processes:
            kill_group(process)
