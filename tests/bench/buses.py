"""The served form on PostgreSQL over RabbitMQ and Redis, beside the task queues that one would use instead.

All in servers of its own, fsync on, on one machine: what it takes from a batch file's upload to its output file
and its durable, signed, proven ledger rows; and what dramatiq and Celery take for a message and a row per job.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import psycopg

from broker.domain.errors import BrokerError
from broker.sdk.http import Client
from tests.bench.processes import cpu_seconds, running, wait_until
from tests.bench.table import print_table
from tests.bench.workload import request_body, write_batch
from tests.services.private_postgres import PrivatePostgres
from tests.services.private_rabbit import PrivateRabbit
from tests.services.private_redis import PrivateRedis
from tests.services.process import PrivateServer, free_port

__all__ = ["measure"]

_JOBS = 200_000
_PEER_JOBS = {"dramatiq": 50_000, "celery": 10_000}
"""Enough of the faster one's that its producer's start is shared by many. Celery's worker stalls in longer runs."""

_IDLE_JOBS = 300
_IDLE_WARM_UP = 30
_RUN_SECONDS = 600.0
_PEER_SECONDS = 120.0
_START_SECONDS = 60.0

_POSTGRES_SETTINGS = {
    "shared_buffers": "128MB",
    "min_wal_size": "2GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "15min",
}
"""For ours and for the peers: every commit on disk, and no checkpoint amid a run."""

_LOG_FILES = 64
"""Of 16 MB, what 200,000 of our jobs write and half as much again."""

_ROLES = (
    ("api", "intake", "assembler", "planner", "closer", "keeper"),
    ("dispatcher", "relay", "rescuer"),
    ("recorder",),
)
"""Three processes, so that no interpreter lock stands between the two cores."""

_LANE = """
[[lane]]
name = "{name}"
provider = "azure-gpu"
region = "here"
accelerator = "none"
accelerator_count = 1
market = "on-demand"
stand_in = true
bus_url = "{bus_url}"
slots = 32
jobs_per_second = 2000.0
price.instance_hour_usd = "3.673"
price.source = "the benchmark"
price.as_of = "2026-11-22"
engine.driver = "echo"
engine.models = ["echo"]
"""


class Figures(msgspec.Struct):
    """Jobs per second, and CPU microseconds per job by who used them."""

    jobs_per_s: float
    cpu_us: dict[str, float]

    @property
    def cpu_us_in_all(self) -> float:
        return sum(self.cpu_us.values())


class Stand(msgspec.Struct):
    """The served form, up; `parts` are its processes' numbers by what they are."""

    client: Client
    parts: dict[str, list[int]]
    database_url: str


def measure(build: Path) -> dict[str, float]:
    """The keys of the group: rates of 200,000 jobs, or BENCH_BUS_JOBS, and of the peers; idle times in milliseconds."""
    folder = (build / "bench-buses").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    jobs_count = int(os.environ.get("BENCH_BUS_JOBS", _JOBS))
    source = write_batch(folder / "jobs.jsonl", jobs_count)
    figures: dict[str, Figures] = {}
    idle: dict[str, tuple[float, float]] = {}
    with PrivateRabbit() as rabbit, PrivateRedis() as redis:
        _measure_peers(folder / "before", figures)
        for name, bus, query in (
            ("amqp", rabbit, "?queue_type=classic"),
            ("amqp_quorum", rabbit, ""),
            ("redis", redis, ""),
        ):
            with _stand(folder / name, bus, bus.url + query) as stand:
                idle[name] = _measure_idle(stand.client)
                figures[name] = _measure_batch(stand, source, jobs_count)
                _say(name, figures[name])
        _measure_peers(folder / "after", figures)
    if missing := {"dramatiq", "celery"} - figures.keys():
        raise SystemExit(f"no run of {' and '.join(sorted(missing))} came to its end")
    _print(figures, idle, jobs_count)
    best = max(figures["dramatiq"].jobs_per_s, figures["celery"].jobs_per_s)
    return {
        "postgres_amqp_batch_jobs_per_s": round(figures["amqp"].jobs_per_s, 1),
        "postgres_amqp_quorum_batch_jobs_per_s": round(figures["amqp_quorum"].jobs_per_s, 1),
        "postgres_redis_batch_jobs_per_s": round(figures["redis"].jobs_per_s, 1),
        "cpu_us_per_job_amqp": round(figures["amqp"].cpu_us_in_all, 1),
        "dramatiq_jobs_per_s": round(figures["dramatiq"].jobs_per_s, 1),
        "celery_jobs_per_s": round(figures["celery"].jobs_per_s, 1),
        "times_best_peer_amqp": round(figures["amqp"].jobs_per_s / best, 2),
        "idle_p50_ms_amqp": round(idle["amqp"][0], 2),
        "idle_p99_ms_amqp": round(idle["amqp"][1], 2),
        "idle_p50_ms_redis": round(idle["redis"][0], 2),
        "idle_p99_ms_redis": round(idle["redis"][1], 2),
    }


@contextmanager
def _stand(folder: Path, bus: PrivateServer, bus_url: str) -> Iterator[Stand]:
    folder.mkdir()
    lane = folder.name.replace("_", "-")  # its queues must not meet those of another type
    catalog, data, log = folder / "lanes.toml", folder / "data", folder / "log"
    catalog.write_text(_LANE.format(name=lane, bus_url=bus_url))
    with _postgres() as postgres, ExitStack() as up:
        port = free_port()
        common = ["--catalog", str(catalog), "--log-level", "warning"]
        where = ["--data", str(data), "--database-url", postgres.url]
        url = f"http://127.0.0.1:{port}"
        _run_once(["broker", "db", "upgrade", *where], log)
        _run_once(
            ["broker", "keys", "lane", "create", lane, "--to", str(folder), "--catalog", str(catalog), *where], log
        )
        parts = {"postgres": [_pid(postgres)], "bus": [_pid(bus)], "broker": [], "worker": []}
        for roles in _ROLES:
            parts["broker"].append(
                up.enter_context(running(["broker", "serve", *roles, "--port", str(port), *where, *common], log))
            )
        client = up.enter_context(_client(data, url))
        keys = ["--key", str(folder / f"lane-{lane}.key"), "--trusted", str(folder / "broker.pub")]
        parts["worker"].append(
            up.enter_context(running(["broker", "worker", "--lane", lane, "--url", url, *keys, *common], log))
        )
        wait_until("the worker's first word", lambda: _count(postgres.url, "worker") == 1, _START_SECONDS)
        yield Stand(client, parts, postgres.url)


@contextmanager
def _postgres() -> Iterator[PrivatePostgres]:
    """As one that has run for a while: it writes its log into files that a checkpoint left for use again."""
    with PrivatePostgres(_POSTGRES_SETTINGS) as postgres:
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            for _ in range(_LOG_FILES):
                connection.execute("SELECT pg_logical_emit_message(false, 'bench', ''), pg_switch_wal()")
            connection.execute("CHECKPOINT")
        yield postgres


def _measure_batch(stand: Stand, source: Path, jobs_count: int) -> Figures:
    before = {name: cpu_seconds(pids) for name, pids in stand.parts.items()}
    began = time.monotonic()
    batch = stand.client.create_batch(source)
    wait_until("the batch's end", lambda: stand.client.batch(batch.id).status == "completed", _RUN_SECONDS)
    wall = time.monotonic() - began
    used = {name: (cpu_seconds(pids) - before[name]) * 1e6 / jobs_count for name, pids in stand.parts.items()}
    for table in ("job_outcome", "attempt"):
        found = _count(stand.database_url, table)
        if found < jobs_count:
            raise SystemExit(f"{jobs_count} jobs left {found} rows in {table}")
    return Figures(jobs_count / wall, used)


def _measure_idle(client: Client) -> tuple[float, float]:
    taken = []
    for number in range(_IDLE_WARM_UP + _IDLE_JOBS):
        time.sleep(0.02)
        began = time.perf_counter()
        client.result(client.submit(request_body(number)).id, wait_seconds=10)
        taken.append((time.perf_counter() - began) * 1_000)
    ordered = sorted(taken[_IDLE_WARM_UP:])
    return ordered[_IDLE_JOBS // 2], ordered[_IDLE_JOBS * 99 // 100]


def _measure_peers(folder: Path, figures: dict[str, Figures]) -> None:
    """Before ours and again after, for a commit a job depends on how busy the disk still is; the better time counts."""
    folder.mkdir()
    for peer in ("dramatiq", "celery"):
        try:
            found = _measure_peer(folder, peer)
        except SystemExit as stalled:  # Celery's worker stops for ever now and then (kombu's event loop)
            sys.stderr.write(f"{peer}: {stalled}; this run of it is not counted\n")
            continue
        _say(peer, found)
        if peer not in figures or found.jobs_per_s > figures[peer].jobs_per_s:
            figures[peer] = found


def _measure_peer(folder: Path, peer: str) -> Figures:
    log, jobs_count = folder / f"{peer}.log", _PEER_JOBS[peer]
    with _postgres() as postgres, PrivateRabbit() as rabbit:
        with psycopg.connect(postgres.url) as connection:
            connection.execute(
                "CREATE TABLE done (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name text, provider text,"
                " body_bytes int, reply text, ended_at timestamptz)"
            )
            connection.execute("CREATE INDEX ON done (provider, ended_at)")
        variables = {"BENCH_POSTGRES": postgres.url, "BENCH_RABBIT": rabbit.url}
        command = ["dramatiq", "tests.bench.bus_peers:dramatiq_broker", "--processes", "2", "--threads", "4"]
        if peer == "celery":
            command = [
                "celery",
                "-A",
                "tests.bench.bus_peers",
                "worker",
                "-P",
                "threads",
                "-c",
                "8",
                "--loglevel=ERROR",
            ]
            command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        with running(command, log, variables) as worker:
            time.sleep(3)  # to come up; the peers say nothing that could be asked
            own = [worker, _pid(postgres), _pid(rabbit)]
            before, began = cpu_seconds(own), time.monotonic()
            with running(["tests.bench.bus_peers", peer, str(jobs_count)], log, variables) as producer:
                own.append(producer)
                wait_until(f"{peer}'s end", lambda: _count(postgres.url, "done") >= jobs_count, _PEER_SECONDS)
                wall = time.monotonic() - began
                used = (cpu_seconds(own) - before) * 1e6 / jobs_count
    return Figures(jobs_count / wall, {"all": used})


@contextmanager
def _client(data: Path, url: str) -> Iterator[Client]:
    token = data / "token"

    def answers() -> bool:
        try:
            with Client(url, token.read_text().strip()) as client:
                client.lanes()
        except (BrokerError, OSError):
            return False
        return True

    wait_until("the broker's first answer", answers, _START_SECONDS)
    with Client(url, token.read_text().strip()) as client:
        yield client


def _run_once(arguments: list[str], log: Path) -> None:
    with running(arguments, log) as pid:
        _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} failed: {log.read_text()[-500:]}")


def _count(database_url: str, table: str) -> int:
    with psycopg.connect(database_url) as connection:
        found = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    return found[0] if found else 0


def _say(name: str, found: Figures) -> None:
    sys.stderr.write(f"{name}: {found.jobs_per_s:,.0f} jobs/s\n")


def _pid(server: PrivateServer) -> int:
    assert server.process is not None
    return server.process.pid


def _print(figures: dict[str, Figures], idle: dict[str, tuple[float, float]], jobs_count: int) -> None:
    def row(title: str, name: str) -> tuple[str, ...]:
        one = figures[name]
        shares = ", ".join(f"{part} {used:.0f}" for part, used in one.cpu_us.items())
        return (title, f"{one.jobs_per_s:,.0f}", f"{one.cpu_us_in_all:.0f}", shares)

    print_table(
        f"Buses: {jobs_count:,} jobs of ours from upload to output file and proven rows; "
        f"{_PEER_JOBS['dramatiq']:,} of dramatiq, {_PEER_JOBS['celery']:,} of Celery",
        ("", "jobs/s", "CPU us/job", "of which"),
        [
            row("broker, PostgreSQL + RabbitMQ, classic queues", "amqp"),
            row("broker, PostgreSQL + RabbitMQ, quorum queues", "amqp_quorum"),
            row("broker, PostgreSQL + Redis", "redis"),
            row("dramatiq on RabbitMQ, a committed row per job", "dramatiq"),
            row("Celery on RabbitMQ, threads, a committed row per job", "celery"),
        ],
    )
    print_table(
        "Idle: one job over HTTP, from sending it to holding its result (instant engine, 300 in sequence)",
        ("", "p50 ms", "p99 ms"),
        [(name, f"{p50:.1f}", f"{p99:.1f}") for name, (p50, p99) in idle.items()],
    )
