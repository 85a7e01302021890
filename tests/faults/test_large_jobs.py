"""Jobs too large for their lane's bus, from submit to result: roles and a worker as processes, on Service Bus."""

from __future__ import annotations

import json
import os
import time

import psycopg
import pytest

from broker.bootstrap.payloads import Payloads
from broker.database.drivers.postgres.database import open_postgres
from broker.sdk.http import Client, DoorError
from infra.emulators.servicebus import KEY, KEY_NAME, Emulator, Options
from tests.flow.forkserver import Forked, run
from tests.flow.program import ROOT, kill_group, lane
from tests.services.process import free_port
from tests.services.small_s3 import SmallS3

SECONDS_MAX = 90.0


@pytest.fixture
def emulator():
    with Emulator(Options(tls=False)) as running:
        yield running


class Served:
    """`broker serve` with all roles and one worker; what differs between them is what each is told of the store."""

    def __init__(self, folder, database_url, bus_url):
        self.folder, self.database_url, self.data = folder, database_url, folder / "data"
        (folder / "lanes.toml").write_text(lane("azure", "azure-gpu", bus_url=bus_url, slots=2, jobs_per_second=200.0))
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("BROKER_", "AWS_"))}
        self.environment = clean | {
            "PYTHONPATH": str(ROOT),
            "BROKER_DATABASE_URL": database_url,
            "BROKER_DATA": str(self.data),
            "BROKER_CATALOG": str(folder / "lanes.toml"),
        }
        self.processes = []

    def start(self, *words, **told):
        with (self.folder / f"{words[0]}.log").open("a") as log:
            environment = self.environment | told
            self.processes.append(Forked(words, cwd=self.folder, env=environment, stdout=log, stderr=log))

    def bring_up(self, broker, worker):
        for words in (("db", "upgrade"), ("keys", "lane", "create", "azure")):
            run(words, cwd=self.folder, env=self.environment).check_returncode()
        self.start("serve", "--port", str(free_port()), **broker)
        self.until((self.data / "url").exists, "serve listens")
        self.start("worker", "--lane", "azure", "--url", (self.data / "url").read_text().strip(), **worker)
        return Client.of_folder(self.data)

    def until(self, condition, what):
        deadline = time.monotonic() + SECONDS_MAX
        while not condition():
            logs = "\n".join(path.read_text()[-3_000:] for path in self.folder.glob("*.log"))
            assert time.monotonic() < deadline, f"not within {SECONDS_MAX:g} s: {what}\n{logs}"
            time.sleep(0.05)

    def one(self, statement):
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(statement).fetchone()[0]

    def close(self):
        for process in self.processes:
            kill_group(process)


@pytest.fixture
def served(tmp_path, postgres_url, emulator):
    bus = f"laneasb://{KEY_NAME}:{KEY}@127.0.0.1:{emulator.port}/?emulator=true&create=true&lease_seconds=10"
    made = Served(tmp_path, postgres_url, bus)
    yield made
    made.close()


def body(text):
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


def run_both(served, client):
    """A job of a megabyte and a small one; each comes back whole."""
    large = "word " * 200_000
    ids = [client.submit(body(text)).id for text in (large, "small")]
    served.until(lambda: all(client.job(each).has_ended for each in ids), "both jobs end")
    assert [client.job(each).status for each in ids] == ["succeeded", "succeeded"]
    replies = [json.loads(client.result(each))["choices"][0]["message"]["content"] for each in ids]
    assert [len(reply) for reply in replies] == [len(large), len("small")]
    assert served.one("SELECT count(*) FROM attempt") == served.one("SELECT count(*) FROM job")


def run_a_batch_with_a_line_of_twenty_megabytes(client, tmp_path):
    """Above what messages are cut to on any bus; its neighbours come back, too."""
    texts = {"small": "small", "large": "x" * 20_000_000, "other": "other"}
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body(text)}
        for name, text in texts.items()
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    *_, state = client.follow_batch(client.create_batch(tmp_path / "in.jsonl").id)
    assert (state.succeeded, state.attempts, state.lines_read) == (3, 3, 3)
    replies = map(json.loads, b"".join(client.download(state.id, "output")).splitlines())
    answers = {each["custom_id"]: each["response"]["body"]["choices"][0]["message"]["content"] for each in replies}
    assert answers == texts


def test_a_megabyte_through_a_shared_folder(served, tmp_path):
    told = {"BROKER_PAYLOADS_URL": f"file://{tmp_path}/payloads"}
    client = served.bring_up(told, told)
    run_both(served, client)
    found = sorted(path.relative_to(tmp_path).parts[1:3] for path in (tmp_path / "payloads").rglob("*-*"))
    assert found == [("events", "azure"), ("shards", "azure")]
    database = open_postgres(served.database_url, pool_size=1, name="sweep")
    Payloads(told["BROKER_PAYLOADS_URL"], database).sweep(kept_seconds=0)
    database.close()
    assert list((tmp_path / "payloads").rglob("*-*")) == []  # the shard has ended, so nobody waits for them
    run_a_batch_with_a_line_of_twenty_megabytes(client, tmp_path)


def test_a_megabyte_for_a_worker_that_knows_no_store(served):
    with SmallS3() as s3:
        client = served.bring_up({"BROKER_PAYLOADS_URL": "s3://bucket/payloads", **s3.environment()}, {})
        run_both(served, client)
        by_url = [method for method, _, signed in s3.asked if signed]
    assert by_url == ["GET", "PUT"]


def test_without_a_store_it_is_refused_where_it_is_submitted(served):
    client = served.bring_up({}, {})
    with pytest.raises(DoorError, match=r"body has 1,000,\d+ bytes; .* 178,912") as caught:
        client.submit(body("word " * 200_000))
    assert caught.value.code == "body_too_large"
    ids = [each.id for each in client.submit_many([{"body": body("x" * 60_000)} for _ in range(16)])]
    served.until(lambda: all(client.job(each).has_ended for each in ids), "what fits is cut to fit")
    assert {client.job(each).status for each in ids} == {"succeeded"}


def test_a_reply_that_nothing_carries_fails_its_job_alone(served):
    client = served.bring_up({}, {})
    # Some fifty bytes are answered to each word.
    asked = [{"body": {"model": "m", "input": ["x"] * 10_000}, "endpoint": "/v1/embeddings"}, {"body": body("good")}]
    large, good = [each.id for each in client.submit_many(asked)]
    served.until(lambda: client.job(large).has_ended and client.job(good).has_ended, "both jobs end")
    assert client.job(good).status == "succeeded"
    state = client.job(large)
    assert (state.status, state.error.code) == ("failed", "reply_too_large")
