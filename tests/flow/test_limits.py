"""A window and a budget hold though the lane is believed fifty times too fast, and all jobs travel in one shard."""

from __future__ import annotations

import pytest

from tests.flow.program import Program, custom_ids, lane, lines_of, request

PLACES = 8
JOB_SECONDS = 0.2
LINES = 120


@pytest.fixture
def program(tmp_path) -> Program:
    program = Program(tmp_path)
    options = {"delay_seconds": JOB_SECONDS, "call_log": str(program.call_log)}
    believed = 50 * PLACES / JOB_SECONDS
    fields = {"jobs_per_second": believed, "shard_jobs_max": 512, "concurrency": PLACES}
    program.catalog.write_text(lane("tpu", "google-tpu", options=options, price="3.60", **fields))
    program.give(request(number) for number in range(LINES))
    return program


def codes(program: Program) -> set[str]:
    return {line["error"]["code"] for line in lines_of(program.errors)}


def test_a_budget_is_kept_to_within_one_job_for_each_place(program):
    limit = 500_000  # nano-dollars, of which a job takes 25,000
    program.finish("--max-cost", "0.0005")
    [(cost, dearest)] = program.query("SELECT sum(cost_nano_usd), max(cost_nano_usd) FROM attempt")
    assert limit <= cost <= limit + PLACES * dearest
    assert codes(program) == {"budget_exceeded"}
    assert len(custom_ids(program.output)) + len(lines_of(program.errors)) == LINES
    program.verify()


def test_nothing_starts_once_the_window_is_over(program):
    program.finish("--window", "1s")
    [(late,)] = program.query("SELECT max(started_us - due_us) FROM attempt")
    assert late <= 0
    assert codes(program) == {"batch_expired"}
    done = custom_ids(program.output)
    assert done
    assert len(done) + len(lines_of(program.errors)) == LINES
    assert len(program.calls()) == len(done)
    program.verify()
