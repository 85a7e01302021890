"""Producers on the bus, as they run: keys by command, roles and workers as processes, replies, and a sealed ledger."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from broker.bus.topology import open_connection
from broker.keys import read_signer, read_trusted
from broker.producing import JobsPublisher, Replies
from tests.flow.program import ROOT, kill_group, lane

QUEUE = "replies.flow"
SECONDS_MAX = 60.0


def _body(text):
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


class Served:
    """`broker serve` with all roles and one worker, on a database and in a corner of Redis of the test's own."""

    def __init__(self, folder, database_url, redis_url):
        self.folder, self.database_url = folder, database_url
        self.prefix = f"broker-test-{uuid.uuid4().hex}-"
        # What a killed process held comes back after six seconds, and not after sixty.
        self.bus_url = f"{redis_url}?global_keyprefix={self.prefix}&visibility_timeout=6"
        self.data = folder / "data"
        catalog = folder / "lanes.toml"
        fields = {"bus_url": self.bus_url, "slots": 2, "shard_jobs_max": 16, "jobs_per_second": 200.0}
        catalog.write_text(lane("tpu", "google-tpu", options={"delay_seconds": 0.05}, **fields))
        clean = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
        self.environment = clean | {
            "PYTHONPATH": str(ROOT),
            "BROKER_DATABASE_URL": database_url,
            "BROKER_DATA": str(self.data),
            "BROKER_CATALOG": str(catalog),
            "BROKER_JOBS_BUS_URL": self.bus_url,
        }
        self.processes = []

    def broker(self, *words, code=0):
        done = subprocess.run(
            [sys.executable, "-m", "broker", *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, *words):
        with (self.folder / f"{words[0]}.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "broker", *words],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
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

    def close(self):
        for process in self.processes:
            kill_group(process)
        with open_connection(self.bus_url) as connection:
            client = connection.default_channel.client
            ours = list(client.scan_iter(f"{self.prefix}*"))
            if ours:
                client.delete(*ours)


@pytest.fixture
def served(tmp_path, postgres_url, redis_url):
    from tests.services.process import free_port

    made = Served(tmp_path, postgres_url, urlunsplit(urlsplit(redis_url)._replace(query="")))
    made.port = free_port()
    yield made
    made.close()


def test_jobs_over_the_bus_survive_a_kill_are_told_of_and_proven(served):
    served.broker("keys", "lane", "create", "tpu")
    served.broker("keys", "producer", "create", "default")
    assert "'nobody' is no tenant" in served.broker("keys", "producer", "create", "nobody", code=2)
    signer, _ = read_signer(served.folder / "producer-default.key")
    ring = read_trusted(served.folder / "broker.pub")
    first = served.serve()
    served.start("worker", "--lane", "tpu", "--url", (served.data / "url").read_text().strip())
    jobs, replies = JobsPublisher(served.bus_url, signer), Replies(served.bus_url, QUEUE, ring)
    keys, told = [], {}

    def publish(messages):
        for number in range(messages):
            texts = [f"job {len(keys)} {number} {place}" for place in range(20)]
            keys.extend(jobs.publish([{"body": _body(text)} for text in texts], reply_to=QUEUE))

    def hear(count, what):
        def enough():
            told.update({one.key: one for one in replies.receive(0.2)})
            return len(told) >= count

        served.until(enough, what)

    publish(10)
    hear(20, "the first replies")
    publish(10)
    kill_group(first)
    publish(10)  # while nobody takes them in
    served.serve()
    keys += jobs.publish([{"body": _body("late"), "window": "never"}, {"body": _body("good")}], reply_to=QUEUE)
    hear(602, "all replies")
    jobs.close()
    replies.close()

    assert set(told) == set(keys)
    refused = told[keys[-2]]
    assert (refused.status, refused.job_id, refused.error_code) == ("refused", None, "invalid_field")
    ended = [one for one in told.values() if one is not refused]
    assert {one.status for one in ended} == {"succeeded"}
    assert json.loads(ended[0].body)["choices"][0]["message"]["content"]
    assert served.one("SELECT count(*) FROM job") == served.one("SELECT count(*) FROM job_outcome") == 601
    served.until(lambda: served.one("SELECT count(*) FROM reply") == 0, "nothing is left to be told")

    served.until(
        lambda: (
            served.one("SELECT max(tree_size) FROM ledger_checkpoint")
            == served.one("SELECT count(*) FROM ledger_batch")
        ),
        "all is sealed",
    )
    said = served.broker("ledger", "verify", "--trusted", "broker.pub")
    assert "of them published." in said
    assert "Every row is as it was written." in said
    proof = json.loads(served.broker("ledger", "prove", "--job", ended[0].job_id.hex()))
    assert [row["values"]["outcome"] for row in proof["rows"]][-1] == "succeeded"
    assert "a sealer is at work on this database" in served.broker("ledger", "seal", code=1)
