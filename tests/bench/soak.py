"""`python -m tests.bench.soak MINUTES`: the service under steady mixed load; memory and open files must stay flat.

Some 500 jobs a second, good and bad: lists of single jobs, an engine that fails now and then, a batch with bad
lines every second, refused submissions. At the end every accepted job has ended, and the sums are exact.
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from broker.domain.errors import BrokerError
from broker.sdk.http import BatchState, Client
from tests.bench.service import running_service
from tests.bench.table import print_table
from tests.bench.workload import LANES, request_body

__all__ = ["main"]

_LISTS_PER_SECOND = 8
_JOBS_PER_LIST = 50
_LINES_PER_BATCH = 100
_BAD_LINES = 10
_SAMPLE_SECONDS = 30.0
_SETTLE_SECONDS = 120.0


class Sample(msgspec.Struct):
    minute: float
    accepted: int
    rss_mb: float
    open_files: int


class Load:
    """Sends the load and counts what was accepted."""

    def __init__(self, client: Client, folder: Path) -> None:
        self._client = client
        self._batch_file = folder / "batch.jsonl"
        self._number = 0
        self.accepted = 0
        self.refused = 0
        self.batches: list[str] = []

    def one_second(self) -> None:
        """400 single jobs, a batch of 90 good and 10 bad lines, and five submissions that must be refused."""
        for _ in range(_LISTS_PER_SECOND):
            self.accepted += len(self._client.submit_many([{"body": self._body()} for _ in range(_JOBS_PER_LIST)]))
        self._send_batch()
        for body in (b"{}", b"[]", b'{"model":"nobody"}', b'{"model":"echo"}', b'{"model":"echo","messages":[]}'):
            try:
                self._client.submit(body)
            except BrokerError:
                self.refused += 1

    def _send_batch(self) -> None:
        with self._batch_file.open("wb") as file:
            for place in range(_LINES_PER_BATCH):
                line = b'{"custom_id":"%d","method":"POST","url":"/v1/chat/completions","body":%b}\n'
                file.write(b"not a line\n" if place < _BAD_LINES else line % (place, bytes(self._body())))
        self.batches.append(self._client.create_batch(self._batch_file).id)
        self.accepted += _LINES_PER_BATCH - _BAD_LINES

    def _body(self) -> msgspec.Raw:
        self._number += 1
        return msgspec.Raw(request_body(self._number))


def main(minutes: float) -> int:
    """Run the soak; 0 when everything held."""
    folder = Path(tempfile.mkdtemp(prefix="broker-soak-"))
    try:
        return _soak(folder, minutes)
    finally:
        shutil.rmtree(folder)


def _soak(folder: Path, minutes: float) -> int:
    catalog = folder / "lanes.toml"
    catalog.write_text("".join(_lane(*lane) for lane in LANES))
    samples: list[Sample] = []
    with running_service(folder / "data", catalog) as (process, client):
        load = Load(client, folder)
        began = time.monotonic()
        next_sample = began
        for second in range(round(minutes * 60)):
            load.one_second()
            now = time.monotonic()
            if now >= next_sample:
                samples.append(_sample(process.pid, (now - began) / 60, load.accepted))
                sys.stdout.write(f"{samples[-1]}\n")
                sys.stdout.flush()
                next_sample += _SAMPLE_SECONDS
            time.sleep(max(0.0, began + second + 1 - now))
        seconds = time.monotonic() - began
        settled = _wait_until_ended(folder / "data", load.accepted)
        samples.append(_sample(process.pid, (time.monotonic() - began) / 60, load.accepted))
        last: BatchState = client.batch(load.batches[-1])
    faults = _check(folder / "data", load.accepted, settled)
    print_table(
        f"Soak: {minutes:g} min, {load.accepted / seconds:,.0f} jobs/s accepted, {load.refused:,} submissions refused",
        ("minute", "accepted", "memory MB", "open files"),
        [(f"{one.minute:.1f}", f"{one.accepted:,}", f"{one.rss_mb:.0f}", str(one.open_files)) for one in samples],
    )
    sys.stdout.write(f"last batch: {last.status}\n" + "".join(f"FAULT {fault}\n" for fault in faults))
    return 1 if faults else 0


def _lane(name: str, provider: str, usd: str) -> str:
    return f"""
[[lane]]
name = "{name}"
provider = "{provider}"
region = "here"
accelerator = "none"
accelerator_count = 1
market = "on-demand"
stand_in = true
slots = 2
jobs_per_second = 500.0
shard_jobs_max = 64
price.instance_hour_usd = "{usd}"
price.source = "the soak"
price.as_of = "2026-11-22"
engine.driver = "echo"
engine.models = ["echo"]
engine.options.fail_every = 50
engine.options.garbage_every = 97
engine.options.delay_seconds = 0.005
"""


def _sample(process_id: int, minute: float, accepted: int) -> Sample:
    status = Path(f"/proc/{process_id}/status").read_text()
    rss_kb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return Sample(
        round(minute, 1), accepted, round(rss_kb / 1024, 1), len(list(Path(f"/proc/{process_id}/fd").iterdir()))
    )


def _wait_until_ended(data: Path, accepted: int) -> bool:
    deadline = time.monotonic() + _SETTLE_SECONDS
    while time.monotonic() < deadline:
        if _one(data, "SELECT count(*) FROM job_outcome") >= accepted:
            return True
        time.sleep(1)
    return False


def _check(data: Path, accepted: int, settled: bool) -> list[str]:
    faults = [] if settled else ["not every accepted job has ended"]
    for name, found, expected in (
        ("jobs", _one(data, "SELECT count(*) FROM job"), accepted),
        ("outcomes", _one(data, "SELECT count(*) FROM job_outcome"), accepted),
        ("decisive attempts", _one(data, "SELECT count(*) FROM attempt WHERE decisive"), accepted),
        (
            "nano-dollars of batches",
            _one(data, "SELECT sum(cost_nano_usd) FROM batch_count"),
            _one(data, "SELECT sum(cost_nano_usd) FROM attempt WHERE batch_id IS NOT NULL"),
        ),
        (
            "nano-dollars sealed",
            _one(data, "SELECT sum(sum_cost_nano_usd) FROM ledger_batch"),
            _one(data, "SELECT sum(cost_nano_usd) FROM attempt"),
        ),
    ):
        sys.stdout.write(f"{name}: {found:,} (expected {expected:,})\n")
        if found != expected:
            faults.append(f"{name}: {found:,} where {expected:,} should be")
    return faults


def _one(data: Path, query: str) -> int:
    connection = sqlite3.connect(f"file:{data / 'broker.db'}?mode=ro", uri=True, timeout=10)
    try:
        return int(connection.execute(query).fetchone()[0] or 0)
    finally:
        connection.close()


if __name__ == "__main__":
    raise SystemExit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 30.0))
