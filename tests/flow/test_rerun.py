"""`broker batch rerun`, on a data folder and on a running broker: only what failed is called again."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.flow.program import custom_ids, kill_group, lines_of, request
from tests.flow.test_up import Up

NAMES = [f"job-{number}" for number in range(30)]


@pytest.fixture
def program(tmp_path):
    made = Up(tmp_path)
    made.give([*(request(number) for number in range(30)), b"not JSON"])
    yield made
    if made.process:
        kill_group(made.process)


def fails(program, every: int) -> None:
    program.three_lanes(options={"fail_every": every, "status": 422} if every else {})


def rerun(program, *words: str):
    return program.broker("batch", "rerun", *words, "--data", str(program.data), "--catalog", str(program.catalog))


def called_again(program, failed: list[str]) -> None:
    """Each line's job was called once; of what failed there are two jobs, or more."""
    calls = Counter(program.calls())
    assert set(calls.values()) == {1}
    jobs = program.query("SELECT hex(job_id), custom_id FROM job WHERE batch_id IS NOT NULL")
    by_name = Counter(name for job_id, name in jobs if job_id.lower() in calls)
    assert {name for name, count in by_name.items() if count > 1} == set(failed)
    again = program.query(
        "SELECT first.custom_id = again.custom_id, end.outcome FROM job again JOIN job first ON first.job_id ="
        " again.redrive_of JOIN job_outcome end ON end.job_id = first.job_id"
    )
    assert set(again) == {(1, "failed")}


def test_only_what_failed_of_a_file_runs_again_and_one_output_has_all(program):
    fails(program, 3)
    other = program.folder / "other.jsonl"
    other.write_bytes(json.dumps(request(99)).encode() + b"\n")
    ran = program.finish()
    failed = [line["custom_id"] for line in lines_of(program.errors)[:-1]]
    assert failed
    assert f"Left     {len(failed)} lines that did not succeed: `broker batch rerun {program.prompts}" in ran.said
    assert "--new" in ran.said
    assert program.broker(*program.command()[:2], str(other), *program.command()[3:-2]).code == 0
    assert custom_ids(program.folder / "other.output.jsonl") == ["job-99"]

    ran = rerun(program, str(program.prompts))
    assert ran.code == 0, ran
    assert "With all runs before: 31 lines, " in ran.said
    fails(program, 0)
    still = [line["custom_id"] for line in lines_of(program.errors)]
    assert 0 < len(still) - 1 < len(failed)
    ran = rerun(program, str(program.prompts), "--only", "failed")
    assert (ran.code, ran.complained) == (0, ""), ran
    assert "31 lines, 30 succeeded, 1 in the error file" in ran.said
    assert custom_ids(program.output) == NAMES
    assert [line["error"]["code"] for line in lines_of(program.errors)] == ["invalid_line"]
    called_again(program, failed)
    program.verify()

    ran = rerun(program, str(program.prompts))
    assert (ran.code, "nothing to run again" in ran.sentence) == (2, True)
    before = len(program.calls())
    assert "is its result" in program.finish().said
    assert (custom_ids(program.output), len(program.calls())) == (NAMES, before)
    assert custom_ids(program.folder / "other.output.jsonl") == ["job-99"]
    for words, said in (
        (["--only", "refused"], "a refused line never ran"),
        (["--only", "wet"], "'wet' is none of failed, expired, cancelled"),
        (["--wait"], "for a running broker"),
    ):
        assert said in rerun(program, str(program.prompts), *words).sentence
    assert "neither a file nor a batch's id" in rerun(program, "nothing").sentence


def test_a_batch_on_a_running_broker_is_run_again_by_its_id(program):
    fails(program, 3)
    client = program.up()
    other = client.create_batch(program.prompts)
    ran = program.command_line("batch", "create", str(program.prompts), "--wait")
    assert ran.code == 0, ran
    name = ran.said.split()[0]
    failed = client.batch(name).failed
    assert failed > 0
    program.stop()
    fails(program, 0)
    client = program.up()
    files = ["--output", str(program.output), "--errors", str(program.errors)]
    ran = program.command_line("batch", "rerun", name, "--wait", *files)  # the folder's broker is there
    assert ran.code == 0, ran
    again = client.batch(ran.said.split()[0])
    assert (again.rerun_of, again.lines_read, again.succeeded) == (name, failed, failed)
    assert custom_ids(program.output) == NAMES
    assert [line["error"]["code"] for line in lines_of(program.errors)] == ["invalid_line"]
    ran = program.command_line(
        "batch", "rerun", str(program.prompts), "--url", program.data.joinpath("url").read_text()
    )
    assert "knows batches by their ids" in ran.sentence
    assert "nothing to run again" in program.command_line("batch", "rerun", name).sentence
    assert program.command_line("batch", "rerun", other.id, "--only", "cancelled").code == 1
    program.stop()
    # The broker has gone, so the other one is run again here.
    ran = rerun(program, other.id, "--output", str(program.catalog))
    assert (ran.code, "add --overwrite" in ran.sentence) == (2, True)
    ran = rerun(program, other.id, "--output", str(program.output))
    assert (ran.code, custom_ids(program.output)) == (0, NAMES), ran
    kept = program.output.with_name(f"{program.output.stem}.1.jsonl")
    assert f"of an earlier run is kept as {kept}" in ran.said
    assert custom_ids(kept) == NAMES
    program.verify()


def test_a_rerun_that_was_killed_goes_on(program):
    fails(program, 1)
    assert program.run().code == 1
    program.three_lanes(0.2, concurrency=1, shard_jobs_max=1)
    words = ("batch", "rerun", str(program.prompts), "--data", str(program.data), "--catalog", str(program.catalog))
    process = program.start(*words)
    try:
        while not any(
            done for (done,) in program.query("SELECT count(*) FROM job_outcome WHERE outcome = 'succeeded'")
        ):
            assert process.poll() is None
    finally:
        kill_group(process)
    ran = rerun(program, str(program.prompts))
    assert (ran.code, custom_ids(program.output)) == (0, NAMES), ran
    assert not list(program.folder.glob("*.1.jsonl")), "what the run before wrote is in it"
    assert program.query("SELECT count(*) FROM batch") == [(2,)]
    assert program.query("SELECT count(*) FROM job") == [(60,)]
    program.verify()
