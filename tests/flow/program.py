"""The program as a person runs it, in a folder of the test's own: start it, kill it, and see what it left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.flow.forkserver import Forked

ROOT = Path(__file__).parents[2]
SECONDS_MAX = 60.0
"""Only a run that hangs takes this long."""

PROVIDERS = ("google-tpu", "azure-gpu", "oracle-gpu")


class Ran(NamedTuple):
    """A command that ended."""

    code: int
    said: str
    complained: str
    seconds: float
    peak_bytes: int

    @property
    def sentence(self) -> str:
        """The one line on standard error, without its `error: `."""
        lines = self.complained.splitlines()
        assert len(lines) == 1, f"standard error should hold one line: {self.complained!r}"
        assert lines[0].startswith("error: "), self.complained
        return lines[0].removeprefix("error: ")


def request(number: int, **fields: Any) -> dict[str, Any]:
    """A good line; its text has four words, so four tokens in and four out."""
    body = {"model": "m", "messages": [{"role": "user", "content": f"say the number {number}"}]}
    line = {"custom_id": f"job-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return {**line, **fields}


def encoded(line: dict[str, Any] | bytes) -> bytes:
    return line if isinstance(line, bytes) else json.dumps(line).encode()


def lane(
    name: str, provider: str, *, options: dict[str, Any] | None = None, models: Sequence[str] = ("m",), **fields: Any
) -> str:
    """One lane's TOML."""
    settings = {"jobs_per_second": 20.0, "shard_jobs_max": 4, **fields}
    price = settings.pop("price", "1.20")
    driver = settings.pop("driver", "echo")
    request_timeout = settings.pop("request_timeout_seconds", 300.0)
    concurrency = settings.pop("concurrency", 64)
    lines = [
        "[[lane]]",
        *(f"{key} = {json.dumps(value)}" for key, value in {"name": name, "provider": provider, **settings}.items()),
        'region = "r"\naccelerator = "a"\naccelerator_count = 1\nmarket = "on-demand"',
        f'price = {{ instance_hour_usd = "{price}", source = "the test", as_of = "2026-11-22" }}',
        f"[lane.engine]\ndriver = {json.dumps(driver)}\nmodels = {json.dumps(list(models))}",
        f"request_timeout_seconds = {request_timeout}\nconcurrency = {concurrency}",
        *(f"options.{key} = {json.dumps(value)}" for key, value in (options or {}).items()),
    ]
    return "\n".join(lines) + "\n"


class Program:
    """One folder: prompts, catalog, data, output, and the log of the engines' calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prompts = folder / "prompts.jsonl"
        self.catalog = folder / "lanes.toml"
        self.data = folder / "data"
        self.output = folder / "out.jsonl"
        self.errors = folder / "out.errors.jsonl"
        self.call_log = folder / "calls"
        self.three_lanes()

    # What is given.

    def three_lanes(self, delay_seconds: float = 0.0, **fields: Any) -> None:
        """A lane with each provider, at three prices, cheapest first."""
        options = {"delay_seconds": delay_seconds, "call_log": str(self.call_log), **fields.pop("options", {})}
        prices = zip(("tpu", "azure", "oracle"), PROVIDERS, ("1.20", "2.00", "3.60"), strict=True)
        self.catalog.write_text(
            "\n".join(lane(name, provider, price=price, options=options, **fields) for name, provider, price in prices)
        )

    def give(self, lines: Iterable[dict[str, Any] | bytes]) -> None:
        self.prompts.write_bytes(b"".join(encoded(line) + b"\n" for line in lines))

    # What is run.

    def command(self, *extra: str) -> list[str]:
        """The main job; `extra` comes last, so it may name another output."""
        given = ["batch", "run", str(self.prompts), "--data", str(self.data), "--catalog", str(self.catalog)]
        return [*given, "--output", str(self.output), *extra]

    def broker(self, *words: str, seconds_max: float = SECONDS_MAX) -> Ran:
        began = time.monotonic()
        process = self.start(*words)
        try:
            said, complained = process.communicate(timeout=seconds_max)
        finally:
            kill_group(process)
        assert "Traceback" not in said + complained, said + complained
        return Ran(process.returncode, said, complained, time.monotonic() - began, process.peak_bytes)

    def start(self, *words: str, module: str = "broker.cli") -> Forked:
        """Under way, alone in a process group of its own. `module`: whose `main` stands in for the command's."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
        environment |= {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        return Forked(words, cwd=self.folder, env=environment, program=module)

    def run(self, *extra: str) -> Ran:
        """The main job, to its end."""
        return self.broker(*self.command(*extra))

    def finish(self, *extra: str) -> Ran:
        """The main job, which must go well."""
        ran = self.run(*extra)
        assert ran.code == 0, ran
        assert ran.complained == "", ran
        return ran

    def ledger(self, by: str = "provider", *more: str) -> list[dict[str, Any]]:
        """`ledger summary`, for programs."""
        ran = self.broker("ledger", "summary", "--data", str(self.data), "--by", by, "--format", "json", *more)
        assert ran.code == 0, ran
        return list(json.loads(ran.said))

    def verify(self) -> None:
        ran = self.broker("ledger", "verify", "--data", str(self.data))
        assert ran.code == 0, ran
        assert "Every row is as it was written." in ran.said, ran

    # What is left.

    def calls(self) -> list[str]:
        """The job of each call that any engine was given, over all runs."""
        return self.call_log.read_text().split() if self.call_log.exists() else []

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Rows of a copy of the database, so that looking after a kill changes nothing. For when nobody runs."""
        copy = self.folder / "copy"
        copy.mkdir(exist_ok=True)
        for file in copy.iterdir():
            file.unlink()
        for file in self.data.glob("broker.db*"):
            if not file.name.endswith("-shm"):
                shutil.copy(file, copy)
        connection = sqlite3.connect(copy / "broker.db")
        try:
            return connection.execute(statement).fetchall()
        finally:
            connection.close()

    def query_live(self, statement: str) -> list[tuple[Any, ...]]:
        """Rows of the database while the program works on it; none as long as there is no such table."""
        if not (self.data / "broker.db").exists():
            return []
        connection = sqlite3.connect(f"file:{self.data / 'broker.db'}?mode=ro", uri=True, timeout=5)
        try:
            return connection.execute(statement).fetchall()
        except sqlite3.OperationalError:
            return []
        finally:
            connection.close()

    def ended_jobs(self) -> set[str]:
        """The jobs whose end is in the ledger."""
        if not self.query("SELECT 1 FROM sqlite_master WHERE name = 'job_outcome'"):
            return set()
        return {row[0] for row in self.query("SELECT lower(hex(job_id)) FROM job_outcome")}


def lines_of(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    assert not content or content.endswith(b"\n"), f"{path} ends in the middle of a line"
    return [json.loads(line) for line in content.split(b"\n")[:-1]]


def custom_ids(path: Path) -> list[str | None]:
    return [line["custom_id"] for line in lines_of(path)]


def kill_group(process: subprocess.Popen[str] | Forked) -> None:
    """kill -9 to all of its group; harmless when it has ended."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe:
            pipe.close()


def wait_until(
    condition: Callable[[], object], process: subprocess.Popen[str] | Forked, what: str, pause_seconds: float = 0.01
) -> None:
    """Until the condition holds; fails when the process ends first, or time runs out."""
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        assert process.poll() is None, f"it ended before {what}: {process.communicate()}"
        assert time.monotonic() < deadline, f"not within {SECONDS_MAX:g} s: {what}"
        time.sleep(pause_seconds)
