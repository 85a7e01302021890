"""A thread that dies ends its process with exit code 1, in both forms and whichever it is; another process leads."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from broker.bootstrap.embedded import Embedded
from broker.bootstrap.roles import Role
from broker.catalog.lanes import load_lanes
from broker.domain.errors import BrokerError
from broker.sdk.http import Client
from tests.flow.forkserver import Forked
from tests.flow.program import ROOT, Program, custom_ids, kill_group, lane, request
from tests.harness.dying_thread import DEATHS_FOLDER, PARTS, QUICK
from tests.services.private_postgres import PrivatePostgres
from tests.services.private_redis import PrivateRedis
from tests.services.process import free_port
from tests.upgraded import upgrade_postgres

pytestmark = pytest.mark.slow

SECONDS_MAX = 60.0
LEADS_WITHIN_SECONDS = 5.0
LED = sorted(set(Role) - {Role.API, Role.RECORDER})
STAGE_OF = {"api": "submitting"}
"""The thread's name, where it isn't the part's."""
ROLE_OF = {"door": Role.API, "receiving": Role.INTAKE}
BODY = {"model": "m", "messages": [{"role": "user", "content": "say something"}]}


class Mortal:
    """One `broker` process whose threads can be made to die."""

    def __init__(self, folder: Path, environment: dict[str, str], *words: str) -> None:
        folder.mkdir()
        self.folder = folder
        self.port = free_port()
        self.log = folder / "output.log"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
        given = {"PYTHONPATH": str(ROOT), DEATHS_FOLDER: str(folder), QUICK: "1", "COLUMNS": "200"}
        with self.log.open("wb") as log:
            self.process = Forked(
                [*words, "--port", str(self.port)],
                cwd=folder,
                env=clean | given | environment,
                stdout=log,
                stderr=log,
                program="tests.harness.dying_thread",
            )

    def kill_part(self, part: str) -> None:
        """At its next step; that which stores jobs takes one when a job comes."""
        (self.folder / part).touch()
        if part == "api":
            token = (Path(self.data) / "token").read_text().strip()
            headers = {"Authorization": f"Bearer {token}"}
            with suppress(httpx.HTTPError):  # there will be no answer
                url = f"http://127.0.0.1:{self.port}/broker/v1/jobs"
                httpx.post(url, json={"body": BODY}, headers=headers, timeout=10)

    data = ""

    def wait_for_end(self) -> int:
        return self.process.wait(SECONDS_MAX)

    def events(self, name: str) -> list[dict[str, str]]:
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [event for line in lines if (event := json.loads(line))["event"] == name]

    def until(self, condition, what: str) -> None:
        deadline = time.monotonic() + SECONDS_MAX
        while not condition():
            assert self.process.poll() is None, f"it ended before {what}:\n{self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"not within {SECONDS_MAX:g} s: {what}\n{self.log.read_text()[-3000:]}"
            time.sleep(0.02)

    def until_ready(self) -> None:
        self.until(lambda: "Ready" in self.log.read_text(), "it is ready")

    def sentences(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith("error: ")]


def at(event: dict[str, str]) -> float:
    return datetime.fromisoformat(event["timestamp"]).timestamp()


class Crew:
    """Three processes of all roles. Whoever died is replaced, and the other two divide its leads among them."""

    def __init__(self, folder: Path, database_url: str, bus_url: str) -> None:
        self.folder, self.database_url = folder, database_url
        fields = {"slots": 2, "shard_jobs_max": 16, "jobs_per_second": 200.0, "bus_url": bus_url}
        (folder / "lanes.toml").write_text(
            lane("one", "google-tpu", **fields) + "\n" + lane("two", "azure-gpu", price="2.00", **fields)
        )
        self.environment = {
            "BROKER_DATABASE_URL": database_url,
            "BROKER_DATA": str(folder / "data"),
            "BROKER_CATALOG": str(folder / "lanes.toml"),
            "BROKER_JOBS_BUS_URL": bus_url,
        }
        self.members: list[Mortal] = []
        self.started = 0
        self.hire().until_ready()
        for _ in range(2):
            self.hire()

    def hire(self) -> Mortal:
        self.started += 1
        made = Mortal(self.folder / f"process-{self.started}", self.environment, "serve")
        made.data = str(self.folder / "data")
        self.members.append(made)
        return made

    def leader_of(self, role: Role) -> Mortal:
        deadline = time.monotonic() + SECONDS_MAX
        while time.monotonic() < deadline:
            taken = [
                (at(event), member)
                for member in self.members
                for event in member.events("leadership_taken")
                if event["role"] == role
            ]
            if taken:
                return max(taken, key=lambda pair: pair[0])[1]
            time.sleep(0.05)
        raise AssertionError(f"nobody leads {role}")

    def close(self) -> None:
        for member in self.members:
            kill_group(member.process)


@pytest.fixture(scope="module")
def crew(tmp_path_factory):
    with PrivatePostgres({"max_connections": "200"}) as postgres, PrivateRedis() as redis:
        upgrade_postgres(postgres.url)
        made = Crew(tmp_path_factory.mktemp("crew"), postgres.url, redis.url)
        yield made
        made.close()


@pytest.mark.parametrize("part", [part for part in PARTS if part != "database-writer"])  # that is SQLite's
def test_served_a_dead_thread_ends_its_process_and_another_leads(crew, part):
    for member in crew.members:
        member.until_ready()
    role = ROLE_OF.get(part, part)
    victim = crew.leader_of(role) if role in LED else crew.members[0]
    others = [member for member in crew.members if member is not victim]
    led = [role for role in LED if crew.leader_of(role) is victim]
    victim.kill_part(part)
    assert victim.wait_for_end() == 1, victim.log.read_text()[-3000:]
    (ended,) = victim.events("thread_ended")
    assert ended["stage"] == STAGE_OF.get(part, part)
    assert ended["reason"] == "SystemExit: 0"
    assert len(victim.sentences()) == 1 or victim.events("process_ended"), "it says why, unless it could not stop"
    crew.members.remove(victim)
    slowest = 0.0
    for one in led:
        deadline = time.monotonic() + SECONDS_MAX
        while (leader := crew.leader_of(one)) not in others:
            assert time.monotonic() < deadline
        slowest = max(slowest, max(at(e) for e in leader.events("leadership_taken") if e["role"] == one) - at(ended))
    print(f"{part}: {len(led)} roles led by others after {slowest:.2f} s at most")
    assert slowest < LEADS_WITHIN_SECONDS
    token = (crew.folder / "data" / "token").read_text().strip()
    with Client(f"http://127.0.0.1:{others[0].port}", token) as client:
        assert client.submit(BODY).id, "the other door takes jobs"
    assert all(member.process.poll() is None for member in others)
    crew.hire()


def up_words(folder: Path) -> tuple[str, ...]:
    return ("up", "--data", str(folder / "data"), "--catalog", str(folder / "lanes.toml"))


EMBEDDED = [part for part in PARTS if part not in {"receiving", "notifier", "sealer"}]  # they need a bus, or PostgreSQL


@pytest.fixture(scope="module")
def ups(tmp_path_factory):
    """One `broker up` for each part, started in the background, a few at a time."""

    def start(part: str) -> Mortal:
        folder = tmp_path_factory.mktemp(f"up-{part}")
        (folder / "lanes.toml").write_text(lane("one", "google-tpu") + "\n" + lane("two", "azure-gpu", price="2.00"))
        made = Mortal(folder / "process", {}, *up_words(folder))
        made.data = str(folder / "data")
        with suppress(AssertionError):
            made.until_ready()
        return made

    with ThreadPoolExecutor(3) as pool:
        made = {part: pool.submit(start, part) for part in EMBEDDED}
        yield made
    for one in made.values():
        kill_group(one.result().process)


@pytest.mark.parametrize("part", EMBEDDED)
def test_embedded_a_dead_thread_ends_broker_up(ups, part):
    victim = ups[part].result()
    victim.kill_part(part)
    assert victim.wait_for_end() == 1, victim.log.read_text()[-3000:]
    log = (Path(victim.data) / "broker.log").read_text()
    assert '"thread_ended"' in log
    if part == "database-writer":  # whoever waits for a write waits for ever: it may have to end without order
        assert "database-writer" in log
    else:
        (sentence,) = victim.sentences()
        assert sentence.startswith(f"error: the thread {STAGE_OF.get(part, part)} ended (SystemExit: 0)")


def test_embedded_a_worker_that_celery_ended_is_a_death_too(tmp_path):
    (tmp_path / "lanes.toml").write_text(lane("one", "google-tpu") + "\n" + lane("two", "azure-gpu"))
    died = threading.Event()
    with Embedded(tmp_path / "data", load_lanes(str(tmp_path / "lanes.toml")), on_death=died.set) as embedded:
        embedded.start()
        assert embedded.failure is None
        embedded._worker_side._worker.stop(5.0)
        assert died.wait(10)
    with pytest.raises(BrokerError, match="the thread worker-embedded ended"):
        embedded.check()


def test_embedded_what_was_accepted_goes_on_after_the_death_of_the_dispatcher(tmp_path):
    (tmp_path / "lanes.toml").write_text(lane("one", "google-tpu") + "\n" + lane("two", "azure-gpu", price="2.00"))
    first = Mortal(tmp_path / "first", {}, *up_words(tmp_path))
    first.until_ready()
    with Client.of_folder(tmp_path / "data") as client:
        (first.folder / "dispatcher").touch()
        accepted = []
        while first.process.poll() is None and len(accepted) < 200:
            with suppress(BrokerError, OSError, httpx.HTTPError):
                accepted.append(client.submit(BODY).id)
    assert first.wait_for_end() == 1
    assert accepted
    second = Mortal(tmp_path / "second", {}, *up_words(tmp_path))
    try:
        second.until_ready()
        with Client.of_folder(tmp_path / "data") as client:
            assert {client.wait(job, timeout_seconds=SECONDS_MAX).status for job in accepted} == {"succeeded"}
        second.process.send_signal(signal.SIGTERM)
        assert second.wait_for_end() == 0
    finally:
        kill_group(second.process)


@pytest.mark.parametrize("part", ["dispatcher", "recorder"])
def test_embedded_batch_run_ends_with_1_and_the_same_command_finishes_it(tmp_path, part):
    program = Program(tmp_path)
    program.three_lanes(0.05, shard_jobs_max=4)
    program.give(request(number) for number in range(300))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    (tmp_path / "deaths").mkdir()
    environment |= {"PYTHONPATH": str(ROOT), DEATHS_FOLDER: str(tmp_path / "deaths")}
    run = Forked(program.command(), cwd=tmp_path, env=environment, program="tests.harness.dying_thread")
    try:
        deadline = time.monotonic() + SECONDS_MAX
        while not program.query_live("SELECT 1 FROM job_outcome"):
            assert time.monotonic() < deadline
            assert run.poll() is None, run.communicate()
            time.sleep(0.02)
        (tmp_path / "deaths" / part).touch()
        _, complained = run.communicate(timeout=SECONDS_MAX)
        assert run.returncode == 1, complained
        assert f"error: the thread {part} ended (SystemExit: 0)" in complained
    finally:
        kill_group(run)
    assert 0 < len(program.ended_jobs()) < 300
    program.finish()
    assert sorted(custom_ids(program.output)) == sorted(f"job-{number}" for number in range(300))
    program.verify()
