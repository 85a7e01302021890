"""A real engine's time, simulated: how much of it a batch uses, and what a call costs, beside a driver without us.

The lengths of the answers are those of people's conversations, so a batch ends with some that are long; the direct
driver, 256 connections that each take the next body, shows what that alone costs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from random import Random
from urllib.error import URLError
from urllib.request import urlopen

import msgspec

from infra.servers.process import free_port
from tests.bench.processes import Run, running, timed, wait_until
from tests.bench.sim_engine import Stats
from tests.bench.table import print_table

__all__ = ["measure"]

LENGTHS = Path(__file__).parents[1] / "fixtures" / "engine" / "output_tokens.txt"

_CALLS = 2_400
_PROMPT_S, _TOKEN_S = 0.05, 0.01


class Measured(msgspec.Struct, frozen=True):
    """A batch at an engine: by the engine's clock, and by the kernel's account of whoever drove it."""

    stats: Stats
    places: int
    run: Run

    @property
    def bound_s(self) -> float:
        """What the same answers take where no place is ever empty."""
        return self.stats.busy_s / self.places

    def cells(self, cpu_us_per_call: float) -> tuple[str, ...]:
        makespan_s, wall_s = self.stats.makespan_s, self.run.wall_seconds
        return (
            f"{self.bound_s:.1f}",
            f"{makespan_s:.1f}",
            f"{self.bound_s / makespan_s:.3f}",
            f"{wall_s:.1f}",
            f"{cpu_us_per_call:,.0f}",
        )


def measure(build: Path) -> dict[str, float]:
    """The keys engine_*.

    `engine_efficiency_sim256` is the bound over our makespan, `engine_direct_over_ours_sim256` the direct driver's
    makespan over ours, both by the engine's clock; `engine_efficiency_command` the bound over the whole command.
    `engine_cpu_us_per_call_*` is the command's CPU without what the same command takes for one line; at 16 places the
    engine is sixteen times as fast, so that as many calls come in a second. `engine_client_cpu_us_per_call_*` is that
    of the worker's HTTP client alone.
    """
    folder = build / "bench-engine"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    calls = int(os.environ.get("BENCH_ENGINE_CALLS", _CALLS))
    lines, one_line = folder / "lines.jsonl", folder / "one-line.jsonl"
    _write_lines(lines, calls)
    _write_lines(one_line, 1)
    begun = _run_batch(folder, one_line, 256, 16).run
    direct = _run_direct(folder, lines)
    at_256, at_16 = _run_batch(folder, lines, 256, 1), _run_batch(folder, lines, 16, 16)
    for one in (direct, at_256, at_16):
        if (one.stats.calls, one.stats.broken_off) != (calls, 0):
            raise SystemExit(f"of {calls} calls {one.stats.calls} were served, {one.stats.broken_off} broken off")
    client_256, client_16 = _run_client(folder, lines, 256, 4), _run_client(folder, lines, 16, 64)
    cpu_direct = direct.run.cpu_seconds * 1e6 / calls
    cpu_256, cpu_16 = ((one.run.cpu_seconds - begun.cpu_seconds) * 1e6 / calls for one in (at_256, at_16))
    print_table(
        f"Engine: {calls:,} calls at a simulated server, answers as long as people's conversations; seconds",
        ("", "bound", "engine's clock", "bound / that", "whole command", "CPU us/call"),
        [
            ("direct driver, 256 connections", *direct.cells(cpu_direct)),
            ("broker batch run, 256 places", *at_256.cells(cpu_256)),
            ("broker batch run, 16 places, 16 times as fast", *at_16.cells(cpu_16)),
            ("the worker's HTTP client alone, 256 places", "", "", "", "", f"{client_256:,.0f}"),
            ("the same, 16 places", "", "", "", "", f"{client_16:,.0f}"),
            ("broker batch run of one line", "", "", "", f"{begun.wall_seconds:.1f}", ""),
        ],
    )
    return {
        "engine_efficiency_sim256": round(at_256.bound_s / at_256.stats.makespan_s, 4),
        "engine_direct_over_ours_sim256": round(direct.stats.makespan_s / at_256.stats.makespan_s, 4),
        "engine_efficiency_command": round(at_256.bound_s / at_256.run.wall_seconds, 4),
        "engine_direct_efficiency_sim256": round(direct.bound_s / direct.stats.makespan_s, 4),
        "engine_cpu_us_per_call_256": round(cpu_256, 1),
        "engine_cpu_us_per_call_16": round(cpu_16, 1),
        "engine_client_cpu_us_per_call_256": round(client_256, 1),
        "engine_client_cpu_us_per_call_16": round(client_16, 1),
        "engine_direct_cpu_us_per_call": round(cpu_direct, 1),
    }


def _write_lines(path: Path, count: int) -> None:
    lengths = [int(one) for one in LENGTHS.read_text().split()]
    Random(5).shuffle(lengths)
    with path.open("wb") as file:
        for number, tokens in enumerate(islice(cycle(lengths), count)):
            messages = [{"role": "user", "content": "hello " * 30}]
            body = {"model": "m", "max_tokens": tokens, "messages": messages}
            line = {"custom_id": f"job-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
            file.write(msgspec.json.encode(line) + b"\n")


def _run_direct(folder: Path, lines: Path) -> Measured:
    with _engine(folder, 256, 1) as port:
        run = timed([sys.executable, "-m", "tests.bench.direct_driver", str(lines), str(port), "256"])
        return Measured(_stats(port), 256, run)


def _run_client(folder: Path, lines: Path, places: int, times_as_fast: int) -> float:
    """Microseconds of CPU a call."""
    command = [sys.executable, "-m", "tests.bench.client_driver", str(lines)]
    with _engine(folder, places, times_as_fast) as port:
        done = subprocess.run([*command, str(port), str(places)], capture_output=True, text=True, check=True)
        return float(done.stdout) * 1e6 / _stats(port).calls


def _run_batch(folder: Path, lines: Path, places: int, times_as_fast: int) -> Measured:
    data = folder / "data"
    shutil.rmtree(data, ignore_errors=True)
    with _engine(folder, places, times_as_fast) as port:
        catalog = _write_catalog(folder / "lanes.toml", port, places)
        command = [sys.executable, "-m", "broker", "batch", "run", str(lines), "--catalog", str(catalog)]
        run = timed([*command, "--data", str(data), "--output", str(folder / "out.jsonl")])
        return Measured(_stats(port), places, run)


@contextmanager
def _engine(folder: Path, places: int, times_as_fast: int) -> Iterator[int]:
    port = free_port()
    seconds = (f"{one / times_as_fast:.6f}" for one in (_PROMPT_S, _TOKEN_S))
    with running(["tests.bench.sim_engine", str(port), str(places), *seconds], folder / "engine.log"):
        wait_until("the engine's start", lambda: _is_up(port), 20)
        yield port


def _is_up(port: int) -> bool:
    try:
        _stats(port)
    except URLError:
        return False
    return True


def _stats(port: int) -> Stats:
    with urlopen(f"http://127.0.0.1:{port}/stats", timeout=10) as answer:
        return msgspec.json.decode(answer.read(), type=Stats)


def _write_catalog(path: Path, port: int, places: int) -> Path:
    path.write_text(
        f"""
[[lane]]
name = "bench-engine"
provider = "azure-gpu"
region = "here"
accelerator = "none"
accelerator_count = 1
market = "on-demand"
stand_in = true
jobs_per_second = 100.0
price.instance_hour_usd = "3.673"
price.source = "the benchmark"
price.as_of = "2026-11-22"
[lane.engine]
driver = "openai_http"
models = ["m"]
concurrency = {places}
options.base_url = "http://127.0.0.1:{port}"
options.health_path = "/health"
options.use_proxy = false
"""
    )
    return path
