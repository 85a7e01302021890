"""One Celery worker on each cloud's queue, ours beside kombu's own transport, against emulators on this machine.

Two figures for each: how fast it drains queued tasks that do nothing, and how long one task takes to arrive while
nothing else is going on. Loopback has no distance, so differences are the transport's own work and waiting.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import msgspec

from broker.bus.provisioning import apply_bus
from tests.bench.cloud_worker import CONCURRENCY, PREFETCH_MULTIPLIER, app_on
from tests.bench.table import print_table
from tests.services.private_emulator import PrivateOciQueue, PrivateServiceBus
from tests.services.private_pubsub import PrivatePubSub

__all__ = ["measure"]

_TASKS = 2_000
_IDLE_TASKS = 40
_IDLE_WARM_UP = 5
_SECONDS_MAX = 300.0


class Column(msgspec.Struct, frozen=True):
    """A bus to measure: where it is, and how a queue is made there."""

    name: str
    title: str
    url: str
    make_queue: Callable[[str], object] = lambda queue: None
    environment: dict[str, str] = {}


class Figures(msgspec.Struct, frozen=True):
    drain_msgs_per_s: float
    idle_p50_ms: float
    idle_max_ms: float


@contextmanager
def _columns() -> Iterator[list[Column]]:
    """Every bus, up. One more is one more entry here."""
    with PrivatePubSub() as pubsub, PrivateServiceBus() as servicebus, PrivateOciQueue() as ociqueue:
        project = "bench"
        yield [
            _ours("pubsub", "Pub/Sub, ours", pubsub.url_of(project)),
            Column(
                "stock_gcpubsub",
                "Pub/Sub, kombu's gcpubsub",
                f"gcpubsub://projects/{project}-stock",
                environment={"PUBSUB_EMULATOR_HOST": pubsub.endpoint},
            ),
            _ours("servicebus", "Service Bus, ours", servicebus.url),
            _ours("ociqueue", "OCI Queue, ours", ociqueue.url),
        ]


def _ours(name: str, title: str, url: str) -> Column:
    return Column(name, title, url, lambda queue: apply_bus({url: [queue]}))


def measure(build: Path) -> dict[str, float]:
    """The keys of the group: messages per second and milliseconds, by bus."""
    folder = (build / "bench-clouds").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    keys: dict[str, float] = {}
    rows = []
    with _columns() as columns:
        for column in columns:
            found = _measure_one(column, folder)
            keys[f"idle_p50_ms_{column.name}"] = round(found.idle_p50_ms, 2)
            keys[f"drain_msgs_per_s_{column.name}"] = round(found.drain_msgs_per_s, 1)
            row = (f"{found.drain_msgs_per_s:,.0f}", f"{found.idle_p50_ms:.1f}", f"{found.idle_max_ms:.1f}")
            rows.append((column.title, *row))
    print_table(
        f"Clouds: {_tasks_count():,} queued tasks through one Celery worker ({CONCURRENCY} threads, prefetch"
        f" {CONCURRENCY * PREFETCH_MULTIPLIER}); then {_IDLE_TASKS} one by one",
        ("", "drained/s", "idle p50 ms", "idle max ms"),
        rows,
    )
    return keys


def _measure_one(column: Column, folder: Path) -> Figures:
    # What is set is process-wide with kombu's own transport, so it is taken back before the next one.
    before = {name: os.environ.get(name) for name in column.environment}
    os.environ.update(column.environment)
    try:
        queue = f"bench-{uuid.uuid4().hex[:8]}"
        column.make_queue(queue)
        drained = _drain(column, queue, folder)
        waits_ms = _idle(column, queue, folder)
        return Figures(drained, median(waits_ms), max(waits_ms))
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _drain(column: Column, queue: str, folder: Path) -> float:
    """From the first task's run to the last one's; the worker comes up on a queue that holds them all."""
    count = _tasks_count()
    subprocess.run(_command(column, queue, "publish", str(count)), check=True, timeout=_SECONDS_MAX)
    with _worker(column, queue, folder) as lines:
        seen: dict[float, float] = {}
        while len(seen) < count:
            number, at = next(lines)
            seen.setdefault(number, at)
    return (count - 1) / (max(seen.values()) - min(seen.values()))


def _idle(column: Column, queue: str, folder: Path) -> list[float]:
    """From sending one task to its run, in milliseconds, with nothing else under way."""
    waits_ms = []
    with _worker(column, queue, folder) as lines, app_on(column.url, queue) as app:
        for number in range(_IDLE_WARM_UP + _IDLE_TASKS):
            sent = time.monotonic()
            app.send_task("bench.note", [number])
            arrived, at = next(lines)
            while arrived != number:
                arrived, at = next(lines)
            waits_ms.append((at - sent) * 1_000)
            time.sleep(0.05 + 0.01 * (number % 10))  # so as not to fall in step with anybody's polling
    return waits_ms[_IDLE_WARM_UP:]


@contextmanager
def _worker(column: Column, queue: str, folder: Path) -> Iterator[Iterator[tuple[float, float]]]:
    """The worker, up; what it tells of each task. It is killed if it says nothing for too long."""
    with (folder / f"{column.name}.log").open("ab") as log:
        worker = subprocess.Popen(_command(column, queue), stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            yield _told(worker)
        finally:
            worker.terminate()
            try:
                worker.wait(30)
            except subprocess.TimeoutExpired:
                worker.kill()
            worker.communicate()


def _told(worker: subprocess.Popen[str]) -> Iterator[tuple[float, float]]:
    assert worker.stdout is not None
    for line in worker.stdout:
        words = line.split()
        if len(words) == 2:
            yield float(words[0]), float(words[1])
    raise SystemExit(f"the worker ended with {worker.wait()}")


def _command(column: Column, queue: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "tests.bench.cloud_worker", column.url, queue, *more]


def _tasks_count() -> int:
    return int(os.environ.get("BENCH_CLOUD_TASKS", _TASKS))
