"""`broker up` as people and programs use it: submit, wait, cancel, redrive, steer lanes; and kill -9 in between."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from broker.domain.errors import BrokerError
from broker.sdk.http import Client, DoorError
from tests.flow.program import SECONDS_MAX, Program, custom_ids, kill_group, lines_of, request

STOP_SECONDS_MAX = 5.0


class Up(Program):
    """`broker up` on a free port, one after another on the same folder."""

    process = None

    def up(self, *extra: str) -> Client:
        """Start it; a client of it, once it is ready."""
        (self.data / "url").unlink(missing_ok=True)
        words = ("up", "--data", str(self.data), "--catalog", str(self.catalog), "--port", "0", *extra)
        self.process = self.start(*words)
        self.until((self.data / "url").exists, "it listens")
        return Client.of_folder(self.data)

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + SECONDS_MAX
        while not condition():
            assert self.process.poll() is None, f"it ended before {what}: {self.process.communicate()}"
            assert time.monotonic() < deadline, f"not within {SECONDS_MAX:g} s: {what}"
            time.sleep(0.01)

    def kill(self) -> None:
        kill_group(self.process)

    def stop(self) -> tuple[str, str]:
        """SIGTERM, to a good end."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        said, complained = self.process.communicate(timeout=SECONDS_MAX)
        assert (self.process.returncode, complained) == (0, ""), (said, complained)
        assert time.monotonic() - began < STOP_SECONDS_MAX
        return said, complained

    def command_line(self, *words: str):
        return self.broker(*words, "--data", str(self.data))


@pytest.fixture
def program(tmp_path):
    made = Up(tmp_path)
    yield made
    if made.process:
        kill_group(made.process)


def body(text: str = "say something") -> dict:
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


def text_of(reply: bytes) -> str:
    return json.loads(reply)["choices"][0]["message"]["content"]


def refused(call, *arguments, **terms) -> DoorError:
    with pytest.raises(DoorError) as caught:
        call(*arguments, **terms)
    return caught.value


def test_what_was_accepted_runs_once_though_the_broker_is_killed_twice(program):
    jobs = 200
    program.three_lanes(0.03, slots=2)
    clients = threading.local()
    accepted: dict[int, str] = {}
    up = threading.Event()

    def submit(number: int) -> None:
        """Until it is accepted; the same key each time, for an answer may be lost with the broker."""
        while number not in accepted:
            up.wait(SECONDS_MAX)
            url = (program.data / "url").read_text().strip()
            if getattr(clients, "url", None) != url:
                clients.url, clients.client = url, Client.of_folder(program.data)
            try:
                accepted[number] = clients.client.submit(body(f"job {number}"), idempotency_key=f"k{number}").id
            except (BrokerError, OSError):
                time.sleep(0.02)
        time.sleep(0.01)

    program.up()
    up.set()
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(submit, number) for number in range(jobs)]
        for enough in (40, 120):
            program.until(lambda enough=enough: len(accepted) >= enough, f"{enough} jobs are accepted")
            up.clear()
            program.kill()
            program.up()
            up.set()
        for future in futures:
            future.result(SECONDS_MAX)
    assert len(set(accepted.values())) == jobs
    with Client.of_folder(program.data) as client:
        for number, job in accepted.items():
            assert client.wait(job, timeout_seconds=SECONDS_MAX).status == "succeeded"
            assert text_of(client.result(job)) == f"job {number}"
    program.stop()
    ended = Counter(row[0] for row in program.query("SELECT lower(hex(job_id)) FROM job_outcome"))
    assert ended == {job.removeprefix("job_"): 1 for job in accepted.values()}
    once = program.query("SELECT job_id FROM attempt WHERE decisive GROUP BY job_id HAVING count(*) = 1")
    assert len(once) == jobs
    program.verify()


def test_a_waiting_producer_hears_of_the_end_at_once(program):
    program.three_lanes(0.2)
    client = program.up()
    late = []
    for _ in range(5):
        job = client.submit(body())
        found = client.job(job.id, wait_seconds=10)
        heard_us = time.time_ns() // 1_000
        assert found.status == "succeeded"
        job_id = job.id.removeprefix("job_").upper()
        [(recorded_us,)] = program.query_live(f"SELECT recorded_us FROM job_outcome WHERE hex(job_id) = '{job_id}'")
        late.append((heard_us - recorded_us) / 1_000)
    print("heard after ms", late)
    assert sorted(late)[2] < 50, late


def test_bad_requests_get_one_clear_sentence_each(program):
    client = program.up()
    table = [
        ({"body": {"model": "gpt-9"}}, 400, "invalid_body", "body"),
        ({"body": body() | {"model": "gpt-9"}}, 400, "unknown_model", "the lanes run m"),
        ({"body": body() | {"stream": True}}, 400, "streaming_unsupported", "streamed"),
        ({"body": body(), "endpoint": "/v1/images"}, 400, "invalid_url", "it must be one of"),
        ({"body": body(), "window": "soon"}, 400, "invalid_field", "between 1s and 30d"),
        ({"body": body(), "deadline": "2001-01-01T00:00:00Z"}, 400, "invalid_field", "must lie ahead"),
        ({"body": body(), "budget_usd": "0.0000000001"}, 400, "invalid_field", "more decimals"),
        ({"body": body(), "budget_usd": "0.000000001"}, 400, "budget_exceeded", "cheapest allowed lane, tpu"),
        ({"body": body(), "constraints": {"regions": ["moon"]}}, 400, "no_lane_allowed", "moon"),
        ({"body": body(), "windw": "1h"}, 400, "invalid_field", "windw"),
        ({"body": body(), "tags": {"": "x"}}, 400, "invalid_field", "tag ''"),
        ({"body": body() | {"x": "y" * 3_000_000}}, 400, "body_too_large", "3,000,000"),
        ([], 400, "invalid_field", "1 to 1,000"),
        ([{"body": body()}, {"body": {}}], 400, "invalid_body", "model"),
    ]
    token = (program.data / "token").read_text().strip()
    url = (program.data / "url").read_text().strip()
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, trust_env=False) as http:
        for asked, status, code, words in table:
            answer = http.post("/broker/v1/jobs", content=json.dumps(asked))
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (status, code), (asked, error)
            assert words in error["message"], error
            assert "\n" not in error["message"]
        for content in (b"{", b"\xff", b'{"body":' + b"[" * 100_000):
            assert http.post("/broker/v1/jobs", content=content).json()["error"]["code"] in {
                "invalid_json",
                "invalid_field",
            }
        assert http.post("/broker/v1/jobs", content=b" " * 33_000_000).status_code == 413
        assert http.post("/broker/v1/batches", content=b"").json()["error"]["code"] == "invalid_file"
        assert http.post("/broker/v1/batches?lanes=moon", content=b"x").json()["error"]["code"] == "unknown_lane"
    assert client.lanes()[0].shards == 0
    program.stop()
    assert program.query("SELECT count(*) FROM job") == [(0,)]


def test_one_key_is_one_job(program):
    client = program.up()
    first = client.submit(body(), idempotency_key="a", window="1h")
    again = client.submit(body(), idempotency_key="a", window="1h")
    assert (first.new, again.new, again.id) == (True, False, first.id)
    other = refused(client.submit, body("else"), idempotency_key="a", window="1h")
    assert (other.status, other.code) == (422, "idempotency_conflict")
    one, two, three = client.submit_many([{"body": body(), "idempotency_key": key} for key in ("b", "b", "c")])
    assert one.id == two.id != three.id
    program.kill()
    assert program.up().submit(body(), idempotency_key="a", window="1h").id == first.id


def test_cancelling_ends_what_waits_and_stops_what_runs(program):
    program.three_lanes(30.0, concurrency=1, shard_jobs_max=1)
    client = program.up()
    jobs = client.submit_many([{"body": body(str(number))} for number in range(12)])
    program.until(lambda: len(program.calls()) == 3, "three run")
    waiting = [job.id for job in jobs if client.job(job.id).status == "waiting"]
    running = [job.id for job in jobs if job.id.removeprefix("job_") in program.calls()]
    assert {client.job(job).status for job in running} == {"running"}
    for job in (waiting[-2], running[1], running[1]):
        began = time.monotonic()
        client.cancel(job)
        found = client.wait(job, timeout_seconds=5)
        assert (found.status, found.error.code) == ("cancelled", "job_cancelled")
        assert time.monotonic() - began < 2
    assert refused(client.result, running[1]).code == "job_cancelled"
    others = [job.id for job in jobs if job.id not in {waiting[-2], running[1]}]
    assert {client.job(job).status for job in others} <= {"waiting", "running"}
    left = "SELECT job_id FROM cancel_request"
    program.until(lambda: not program.query_live(left), "the requests are done with")
    program.stop()
    program.verify()


def test_a_cancelled_batch_ends_with_a_line_for_each_of_its_lines(program):
    program.three_lanes(30.0, concurrency=2, shard_jobs_max=2)
    program.give(request(number) for number in range(50))
    client = program.up()
    batch = client.create_batch(program.prompts, name="doomed")
    program.until(lambda: len(program.calls()) >= 6, "some run")
    client.cancel_batch(batch.id)
    found = list(client.follow_batch(batch.id))[-1]
    assert (found.status, found.cancelled, found.succeeded) == ("cancelled", 50, 0)
    lines = [json.loads(line) for line in b"".join(client.download(batch.id, "errors")).splitlines()]
    assert [line["custom_id"] for line in lines] == [f"job-{number}" for number in range(50)]
    assert refused(list, client.download("batch_" + "0" * 32, "errors")).code == "unknown_batch"


def test_a_paused_lane_gets_nothing_also_after_a_restart(program):
    client = program.up()
    for name in ("tpu", "azure"):
        assert client.steer_lane(name, "pause").state == "paused"
    assert client.steer_lane("oracle", "drain").state == "drained"
    job = client.submit(body())
    assert client.job(job.id, wait_seconds=0.5).status == "waiting"
    program.kill()
    client = program.up()
    assert [lane.state for lane in client.lanes()] == ["paused", "paused", "drained"]
    assert client.job(job.id, wait_seconds=0.5).status == "waiting"
    assert program.command_line("lanes", "resume", "azure").said == "azure is open; it has 0 shard(s).\n"
    found = client.wait(job.id, timeout_seconds=5)
    assert (found.status, found.lane) == ("succeeded", "azure")
    assert refused(client.steer_lane, "moon", "pause").code == "unknown_lane"


def test_an_ended_job_can_be_run_again_unless_it_succeeded(program):
    program.three_lanes(options={"fail_every": 1, "status": 400})
    client = program.up()
    failed = client.wait(client.submit(body("twice"), tags={"team": "a"}).id, timeout_seconds=10)
    assert (failed.status, failed.error.code) == ("failed", "engine_refused")
    program.stop()
    program.three_lanes()
    client = program.up()
    again = client.redrive(failed.id)
    assert (again.redrive_of, again.tags) == (failed.id, {"team": "a"})
    assert client.wait(again.id, timeout_seconds=10).status == "succeeded"
    assert text_of(client.result(again.id)) == "twice"
    assert refused(client.redrive, again.id).code == "succeeded"


def test_a_batch_goes_on_where_it_stood_after_a_kill(program):
    program.three_lanes(0.02, slots=2)
    program.give(request(number) for number in range(120))
    client = program.up()
    batch = client.create_batch(program.prompts, name="mine")
    program.until(lambda: len(program.calls()) >= 20, "some have run")
    program.kill()
    client = program.up()
    found = list(client.follow_batch(batch.id))[-1]
    assert (found.status, found.succeeded, found.name) == ("completed", 120, "mine")
    output = program.folder / "got.jsonl"
    output.write_bytes(b"".join(client.download(batch.id, "output")))
    assert custom_ids(output) == [f"job-{number}" for number in range(120)]
    assert {path.suffix for path in (program.data / "uploads").iterdir()} <= {".mark"}  # of the folder itself


def test_commands_of_other_terminals(program):
    assert "has had no `broker up` yet" in program.command_line("jobs", "get", "job_" + "0" * 32).sentence
    program.up()
    answer = program.command_line("jobs", "submit", "--model", "m", "hello there", "--wait")
    assert (answer.code, answer.said) == (0, "hello there\n"), answer
    job = program.command_line("jobs", "submit", "--model", "m", "once more", "--window", "15m").said.strip()
    assert program.command_line("jobs", "wait", job).said == "once more\n"
    assert json.loads(program.command_line("jobs", "get", job, "--format", "json").said)["status"] == "succeeded"
    assert "succeeded" in program.command_line("jobs", "explain", job).said
    again = program.command_line("jobs", "redrive", job)
    assert (again.code, again.sentence) == (1, f"{job} has succeeded: there is nothing to run again")
    wrong = program.command_line("jobs", "submit", "--model", "gpt-9", "hello")
    assert (wrong.code, wrong.sentence) == (2, "body.model is 'gpt-9'; the lanes run m")
    program.give(request(number) for number in range(5))
    made = program.command_line("batch", "create", str(program.prompts), "--wait", "--output", str(program.output))
    assert made.code == 0, made
    assert len(lines_of(program.output)) == 5
    assert program.command_line("batch", "list", "--format", "json").code == 0
    assert "tpu" in program.command_line("lanes", "list").said
    second = program.broker("up", "--data", str(program.data), "--catalog", str(program.catalog))
    assert second.code == 1
    assert "is in use by another broker" in second.sentence
    port = (program.data / "url").read_text().strip().rpartition(":")[2]
    other = program.broker(
        "up", "--data", str(program.folder / "other"), "--catalog", str(program.catalog), "--port", port
    )
    assert (other.code, other.sentence.partition(":")[0]) == (1, "can't listen on 127.0.0.1")
    program.stop()
    gone = program.command_line("lanes", "list")
    assert (gone.code, gone.sentence.partition(":")[0]) == (1, "no broker answers at http")
