"""What goes wrong around a run: engines, disk and clock. Nothing accepted is lost, and one sentence says it."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import pytest

from broker.bootstrap.batch_run import BatchRun, RunOptions
from broker.bootstrap.batch_source import open_source
from broker.bootstrap.embedded import Embedded
from broker.catalog.lanes import load_lanes
from tests.flow.program import Program, custom_ids, lane, lines_of, request


@pytest.fixture
def program(tmp_path):
    return Program(tmp_path)


def _codes(program: Program) -> Counter[str]:
    return Counter(line["error"]["code"] for line in lines_of(program.errors))


def _all_there(program: Program, count: int) -> None:
    """Every line in one of the two files once, and the ledger's sums are the output's."""
    written = custom_ids(program.output) + custom_ids(program.errors)
    assert sorted(map(str, written)) == sorted(f"job-{number}" for number in range(count))
    tokens = sum(line["response"]["body"]["usage"]["completion_tokens"] for line in lines_of(program.output))
    assert sum(row["output_tokens"] or 0 for row in program.ledger()) == tokens  # null where nobody knows
    counted = program.query("SELECT sum(cost_nano_usd) FROM batch_count")[0][0]
    assert program.query("SELECT sum(cost_nano_usd) FROM attempt")[0][0] == counted
    program.verify()


def test_an_engine_that_fails_and_babbles_at_random_delays_and_does_no_harm(program):
    program.three_lanes(options={"fail_every": 7, "status": 500, "garbage_every": 11}, shard_jobs_max=16)
    program.give(request(number) for number in range(200))
    program.finish()
    _all_there(program, 200)
    outcomes = {row["outcome"]: row["attempts"] for row in program.ledger("outcome")}
    assert outcomes["failed"] >= 200 // 7


def test_engines_that_only_refuse_end_every_job_with_their_reason(program):
    program.three_lanes(options={"fail_every": 1, "status": 400})
    program.give(request(number) for number in range(5))
    ran = program.run()
    assert ran.code == 1
    assert ran.sentence == "no line succeeded; the error file says why"
    assert _codes(program) == {"engine_refused": 5}
    assert {line["response"]["status_code"] for line in lines_of(program.errors)} == {400}
    assert sum(row["attempts"] for row in program.ledger()) == 5 * 2  # no lane has done anything yet: a second is asked


def test_engines_that_are_busy_for_the_whole_window_are_asked_now_and_then_until_it_closes(program):
    program.three_lanes(options={"fail_every": 1, "status": 429})
    program.give(request(number) for number in range(5))
    ran = program.run("--window", "4s")
    assert ran.code == 1
    assert ran.seconds >= 4
    assert _codes(program) == {"batch_expired": 5}
    rows = program.ledger("error_code")
    assert {row["error_code"] for row in rows} == {"engine_busy"}
    assert sum(row["attempts"] for row in rows) <= 5 * 2 + 3 * 4  # one for each rest of a lane
    program.verify()


def test_an_engine_that_never_answers_is_given_up_and_its_jobs_go_elsewhere(program):
    silent = lane("silent", "oracle-gpu", price="0.10", options={"hang_every": 1}, request_timeout_seconds=0.5)
    program.catalog.write_text(silent + lane("sound", "google-tpu", price="9.00"))
    program.give(request(number) for number in range(12))
    program.finish()
    _all_there(program, 12)
    assert {row["error_code"] for row in program.ledger("lane,error_code") if row["lane"] == "silent"} == {
        "engine_timeout"
    }


def test_a_lane_without_an_engine_rests_and_swallows_nothing(program):
    dead = lane("dead", "oracle-gpu", price="0.10", driver="openai_http", options={"base_url": "http://127.0.0.1:9"})
    sound = lane("sound", "google-tpu", price="9.00", options={"delay_seconds": 0.2})
    program.catalog.write_text(dead + sound)
    program.give(request(number) for number in range(60))
    program.finish()
    _all_there(program, 60)
    succeeded = {row["lane"]: row["succeeded"] for row in program.ledger("lane")}
    assert succeeded == {"dead": 0, "sound": 60}


def test_a_job_that_kills_its_engine_ends_alone(program):
    """It is to blame as long as others succeed beside it, so they take a while."""
    with _FragileEngine() as engine:
        options = {"base_url": engine.url}
        program.catalog.write_text(lane("fragile", "google-tpu", driver="openai_http", concurrency=4, options=options))
        program.give(request(number) for number in range(120))
        program.finish()
    _all_there(program, 120)
    assert custom_ids(program.errors) == ["job-13"]
    assert _codes(program) == {"engine_failed": 1}
    assert program.query("SELECT count(*) FROM attempt WHERE outcome = 'failed'") == [(4,)]


def test_a_line_of_300_megabytes_is_refused_unread(program):
    with program.prompts.open("wb") as file:
        file.write(json.dumps(request(0)).encode() + b"\n")
        for _ in range(300):
            file.write(b"x" * 1_000_000)
        file.write(b"\n" + json.dumps(request(1)).encode() + b"\n")
    ran = program.finish()
    assert custom_ids(program.output) == ["job-0", "job-1"]
    (refused,) = lines_of(program.errors)
    assert (refused["error"]["code"], refused["error"]["line"]) == ("line_too_large", 2)
    assert 20_000_000 < ran.peak_bytes < 400_000_000


def test_a_full_disk_is_said_and_the_run_goes_on_where_there_is_room(program, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], check=False).returncode:
        pytest.skip("a small file system of its own needs root and the right to mount")
    try:
        program.data = disk / "data"
        program.three_lanes(jobs_per_second=2_000.0, shard_jobs_max=64)
        program.give(request(number) for number in range(8_000))
        ran = program.run()
        assert ran.code == 1
        assert "full" in ran.sentence
        assert "run again" in ran.sentence or "start again" in ran.sentence
        subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
        program.finish()
        _all_there(program, 8_000)
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


@pytest.mark.parametrize("jump_seconds", [-7_200, 1_800])
def test_a_clock_that_is_set_during_the_run_loses_nothing(program, jump_seconds):
    program.three_lanes(delay_seconds=0.05, options={"fail_every": 9})
    program.give(request(number) for number in range(120))
    offset_us = [0]
    options = RunOptions(source=program.prompts, output=program.output)

    def clock() -> int:
        return time.time_ns() // 1_000 + offset_us[0]

    with (
        open_source(program.prompts, program.data) as source,
        Embedded(program.data, load_lanes(program.catalog), clock) as embedded,
    ):
        run = BatchRun(embedded, options, source)
        embedded.start()
        began = time.monotonic()
        for progress in run.work():
            if not offset_us[0] and progress.counts.succeeded > 30:
                offset_us[0] = jump_seconds * 1_000_000
            assert time.monotonic() - began < 60
        run.stop_reading()
    assert offset_us[0]
    _all_there(program, 120)
    ((shortest,),) = program.query("SELECT min(min(queue_us, run_us)) FROM attempt")
    assert shortest >= 0


class _FragileEngine:
    """An OpenAI-shaped server that drops every connection when it is asked to say the number 13."""

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _FragileHandler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _FragileHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    _numbers = itertools.count()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked["messages"][0]["content"].endswith(" 13"):
            self.close_connection = True
            return
        time.sleep(0.25)
        usage = {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8}
        message = {"role": "assistant", "content": "four words it is"}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        answer = {"id": f"r{next(self._numbers)}", "object": "chat.completion", "choices": choices, "usage": usage}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


if __name__ == "__main__":
    sys.exit(pytest.main([str(Path(__file__))]))
