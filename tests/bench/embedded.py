"""The embedded form, from file to output line and durable ledger row; and what one would have without it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from pathlib import Path

from tests.bench.idle import measure_idle
from tests.bench.processes import Run, timed
from tests.bench.table import print_table
from tests.bench.workload import write_batch, write_catalog

__all__ = ["measure"]

_RATE_JOBS = 100_000
_SMALL_JOBS = 10_000
_LARGE_JOBS = 500_000
_PEER_JOBS = 4_000
_ROUNDS = 3


def measure(build: Path) -> dict[str, float]:
    """The keys embedded_*; `embedded_batch_jobs_per_s` is over the whole command, its start and end included."""
    folder = build / "bench-embedded"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    catalog = write_catalog(folder / "lanes.toml")
    jobs_large = int(os.environ.get("BENCH_LARGE_JOBS", _LARGE_JOBS))
    idle = measure_idle(folder, catalog)  # first: after half a million jobs the disk is not idle
    ours, peers = [], []
    for _ in range(_ROUNDS):
        ours.append(_run_batch(folder, catalog, _RATE_JOBS))
        peers.append(_run_peer(folder))
    small, large = _run_batch(folder, catalog, _SMALL_JOBS), _run_batch(folder, catalog, jobs_large)
    long_shards = write_catalog(folder / "long-shards.toml", shard_jobs_max=None)
    longer = _run_batch(folder, long_shards, _RATE_JOBS)
    rates = sorted(_RATE_JOBS / run.wall_seconds for run in ours)
    cpu = sorted(run.cpu_seconds * 1e6 / _RATE_JOBS for run in ours)
    peer_rates = sorted(_PEER_JOBS / run.wall_seconds for run in peers)
    peer_cpu = sorted(run.cpu_seconds * 1e6 / _PEER_JOBS for run in peers)
    middle = _ROUNDS // 2
    print_table(
        "Embedded: file to output line and durable ledger row (median, lowest and highest of 3)",
        ("", "jobs/s", "CPU us/job", "peak MB"),
        [
            ("broker batch run, 100,000 jobs", _spread(rates), _spread(cpu), f"{ours[middle].rss_mb:.0f}"),
            ("Celery memory://, a task and a committed SQLite row per job", _spread(peer_rates), _spread(peer_cpu), ""),
            ("broker batch run, 10,000 jobs", f"{_SMALL_JOBS / small.wall_seconds:,.0f}", "", f"{small.rss_mb:.0f}"),
            (
                f"broker batch run, {jobs_large:,} jobs",
                f"{jobs_large / large.wall_seconds:,.0f}",
                "",
                f"{large.rss_mb:.0f}",
            ),
            (
                "broker batch run, 100,000 jobs, shards of the default size instead of 64",
                f"{_RATE_JOBS / longer.wall_seconds:,.0f}",
                f"{longer.cpu_seconds * 1e6 / _RATE_JOBS:,.0f}",
                f"{longer.rss_mb:.0f}",
            ),
        ],
    )
    return {
        "embedded_batch_jobs_per_s": round(rates[middle], 1),
        "embedded_cpu_us_per_job": round(cpu[middle], 1),
        "embedded_celery_row_per_job_jobs_per_s": round(peer_rates[middle], 1),
        "embedded_rss_mb_10k": round(small.rss_mb, 1),
        "embedded_rss_mb_500k": round(large.rss_mb, 1),
        "embedded_long_shards_jobs_per_s": round(_RATE_JOBS / longer.wall_seconds, 1),
        **idle,
    }


def _spread(values: list[float]) -> str:
    return f"{values[len(values) // 2]:,.0f} ({values[0]:,.0f}-{values[-1]:,.0f})"


def _run_batch(folder: Path, catalog: Path, jobs_count: int) -> Run:
    data, source, output = folder / "data", folder / "jobs.jsonl", folder / "out.jsonl"
    shutil.rmtree(data, ignore_errors=True)
    write_batch(source, jobs_count)
    command = [sys.executable, "-m", "broker", "batch", "run", str(source), "--data", str(data)]
    run = timed([*command, "--catalog", str(catalog), "--output", str(output)])
    with output.open("rb") as file:
        written = sum(1 for _ in file)
    with sqlite3.connect(data / "broker.db") as connection:
        recorded = connection.execute("SELECT count(*) FROM attempt WHERE outcome = 'succeeded'").fetchone()[0]
    if not written == recorded == jobs_count:
        raise SystemExit(f"{jobs_count} jobs gave {written} output lines and {recorded} ledger rows")
    shutil.rmtree(data)
    return run


def _run_peer(folder: Path) -> Run:
    """The same queue without us: one Celery task per job, each committing one durable row."""
    return timed([sys.executable, "-m", "tests.bench.celery_peer", str(folder / "peer.db"), str(_PEER_JOBS)])
