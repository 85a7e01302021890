"""Files that a person gives and gets: what is read is never written over, nor an earlier run's replies unasked."""

from __future__ import annotations

import gzip
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.flow.program import ROOT, Program, custom_ids, kill_group, lines_of, request, wait_until

THREE = ["job-0", "job-1", "job-2"]


@pytest.fixture
def program(tmp_path) -> Program:
    program = Program(tmp_path)
    program.give(request(number) for number in range(3))
    return program


def as_it_is(program: Program) -> tuple[Path, Path]:
    return program.prompts, program.prompts


def through_a_link(program: Program) -> tuple[Path, Path]:
    link = program.folder / "link.jsonl"
    link.symlink_to(program.prompts)
    return program.prompts, link


def as_a_second_name(program: Program) -> tuple[Path, Path]:
    second = program.folder / "second.jsonl"
    os.link(program.prompts, second)
    return program.prompts, second


def through_a_folder_to_be_made(program: Program) -> tuple[Path, Path]:
    return program.prompts, program.folder / "new" / ".." / program.prompts.name


def as_the_error_file(program: Program) -> tuple[Path, Path]:
    source = program.prompts.rename(program.folder / "x.errors.jsonl")
    return source, program.folder / "x.jsonl"


def as_the_draft(program: Program) -> tuple[Path, Path]:
    source = program.prompts.rename(program.folder / ".x.jsonl.part")
    return source, program.folder / "x.jsonl"


@pytest.mark.parametrize(
    "named",
    [
        as_it_is,
        through_a_link,
        as_a_second_name,
        through_a_folder_to_be_made,
        as_the_error_file,
        as_the_draft,
    ],
)
def test_what_is_read_is_not_written_over_by_any_name_even_if_asked_to(program, named):
    program.prompts, program.output = named(program)
    content = program.prompts.read_bytes()
    ran = program.run("--overwrite")
    assert ran.code == 2
    assert ran.sentence.endswith("is the input itself, which would be lost: name another file with --output")
    assert program.prompts.read_bytes() == content
    assert program.calls() == []
    assert not (program.folder / "new").exists()


def test_an_earlier_runs_replies_are_kept_under_a_number_and_that_is_said(program):
    program.finish()
    first = program.output.read_bytes()
    program.finish()  # the same batch: its own
    program.output.unlink()
    program.finish()
    assert program.output.read_bytes() == first
    assert len(list(program.folder.glob("out*.jsonl"))) == 2

    before, program.prompts = program.prompts, program.folder / "mended.jsonl"
    program.prompts.write_bytes(before.read_bytes().replace(b"say the number 2", b"say it") + b"bad\n")
    kept = program.folder / "out.1.jsonl"
    assert f"out.jsonl of an earlier run is kept as {kept}\n" in program.finish().said
    second = program.output.read_bytes()
    assert kept.read_bytes() == first != second
    assert len(lines_of(program.errors)) == 1

    # The first one's result is not the second one's, nor is that lost by it.
    program.prompts = before
    said = program.finish().said
    assert "are not run again" in said
    assert "out.errors.jsonl of an earlier run is kept as" in said
    assert (program.output.read_bytes(), (program.folder / "out.2.jsonl").read_bytes()) == (first, second)
    assert len(lines_of(program.folder / "out.errors.2.jsonl")) == 1
    assert "worked off before" in program.finish().said

    program.finish("--new", "--overwrite")
    assert not (program.folder / "out.3.jsonl").exists()
    assert kept.read_bytes() == first
    assert len(program.calls()) == 9


def test_a_file_that_holds_no_replies_stays_where_it_is(program):
    program.output.touch()
    program.finish()  # there was nothing in it
    assert custom_ids(program.output) == THREE
    note, errors = program.folder / "note.txt", program.folder / "o.errors.jsonl"
    for path, output in ((note, note), (errors, program.folder / "o.jsonl")):
        path.write_text("mine")
        for more in ([], ["--new"]):
            ran = program.run("--output", str(output), *more)
            assert ran.code == 2
            assert ran.sentence == (
                f"{path} exists, and holds something else than replies, which would be lost:"
                " name another file with --output, or add --overwrite"
            )
            assert path.read_text() == "mine"
    other = program.folder / "other.jsonl"  # another one's input, by a slip
    other.write_bytes(program.prompts.read_bytes())
    assert "something else than replies" in program.run("--output", str(other)).sentence
    assert len(program.calls()) == 3
    program.finish("--overwrite", "--output", str(note))
    assert custom_ids(note) == THREE


def test_neither_devices_nor_the_brokers_own_files_are_written_over(program):
    program.finish()
    pipe = program.folder / "pipe"  # as /dev/null is none, and no harm is done if this fails
    os.mkfifo(pipe)
    for output, why in (
        (str(pipe), f"can't write {pipe}: it is a device or a pipe, and replies go to files"),
        (str(program.data / "broker.db"), "is the broker's broker.db itself"),
    ):
        ran = program.run("--new", "--overwrite", "--output", output)
        assert ran.code == 2
        assert why in ran.sentence
    assert pipe.is_fifo()
    program.verify()


def run_in_shell(program: Program, line: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    terms = f"--data {shlex.quote(str(program.data))} --catalog {shlex.quote(str(program.catalog))}"
    line = line.replace("TERMS", terms).replace("broker ", f"{sys.executable} -m broker ")
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=program.folder,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    "line",
    [
        "broker batch run <(cat prompts.jsonl) TERMS",
        "cat prompts.jsonl | broker batch run - TERMS",
        "broker batch run /dev/stdin TERMS < prompts.jsonl",
    ],
)
def test_what_can_be_read_only_once_is_run_like_a_file(program, line):
    ran = run_in_shell(program, line)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert custom_ids(program.folder / "stdin.output.jsonl") == THREE
    assert {path.name.removeprefix("broker.") for path in program.data.iterdir()} == {"db", "lock", "log", "keys"}
    assert "are not run again" in program.run().said  # by what it holds, not by its name
    assert len(program.calls()) == 3


def test_a_pipe_is_quoted_and_its_own_file_is_not_written_over(program):
    ran = run_in_shell(program, "cat prompts.jsonl prompts.jsonl | broker quote - TERMS")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "3 jobs, 3 lines that would be refused" in ran.stdout
    assert not program.data.exists()
    ran = run_in_shell(program, "broker batch run - --output prompts.jsonl --overwrite TERMS < prompts.jsonl")
    assert ran.returncode == 2
    assert "is the input itself" in ran.stderr
    assert len(lines_of(program.prompts)) == 3


def test_a_named_pipe_is_read_and_an_empty_one_leaves_nothing(program):
    pipe = program.folder / "pipe"
    os.mkfifo(pipe)
    content = [b"", gzip.compress(program.prompts.read_bytes())]
    program.prompts = pipe
    for given in content:
        writer = threading.Thread(target=pipe.write_bytes, args=(given,))
        writer.start()
        ran = program.run()
        writer.join()
        if not given:
            assert (ran.code, ran.sentence) == (2, f"{pipe} is empty: there is nothing to run")
            assert not program.data.exists()
    assert custom_ids(program.output) == THREE


def test_quote_counts_what_intake_would_take_in(program):
    long = request(8, body={"model": "m", "messages": [{"role": "user", "content": "x" * 70_000_000}]})
    program.give([b"", request(1), request(1), b"  ", b"nothing", request(2, url="/chat/completions"), long])
    ran = program.broker("quote", str(program.prompts), "--catalog", str(program.catalog), "--data", str(program.data))
    assert ran.code == 0, ran
    assert "2 jobs, 3 lines that would be refused" in ran.said
    program.prompts.write_bytes(b"[\n")
    ran = program.broker("quote", str(program.prompts), "--catalog", str(program.catalog), "--data", str(program.data))
    assert ran.code == 1
    assert "is one JSON array" in ran.sentence


def test_sigterm_before_the_engines_are_up_is_answered(program):
    os.mkfifo(program.folder / "pipe")
    program.prompts = program.folder / "pipe"
    process = program.start(*program.command())
    writer = os.open(program.prompts, os.O_WRONLY)  # it reads now, and waits for the end
    try:
        os.write(writer, b"x")
        os.kill(process.pid, signal.SIGTERM)
        said, complained = process.communicate(timeout=30)
    finally:
        os.close(writer)
        kill_group(process)
    assert (process.returncode, said, complained) == (130, "Stopped; run the same command again to go on.\n", "")
    assert not program.data.exists()


@pytest.mark.parametrize(
    ("words", "unbuffered"),
    [("batch run prompts.jsonl TERMS", ""), ("batch run prompts.jsonl TERMS", "1"), ("batch --help", "")],
)
def test_output_that_takes_nothing_is_said_in_a_sentence(program, words, unbuffered):
    ran = run_in_shell(program, f"PYTHONUNBUFFERED={unbuffered} broker {words} > /dev/full")
    assert (ran.returncode, ran.stderr) == (1, "error: can't write to standard output: No space left on device\n")


def test_a_broker_that_does_not_get_its_address_leaves_no_folder(program):
    first = program.start("up", "--port", "0", "--data", str(program.data), "--catalog", str(program.catalog))
    try:
        wait_until((program.data / "url").exists, first, "it listens")
        listed = program.broker("batch", "list", "--data", str(program.data))
        assert listed.said == "There are no batches.\n"
        port = (program.data / "url").read_text().strip().rpartition(":")[2]
        other = program.folder / "other"
        ran = program.broker("up", "--port", port, "--data", str(other), "--catalog", str(program.catalog))
        assert ran.code == 1
        assert "can't listen" in ran.sentence
        assert not other.exists()
        uploads_and_downloads(program)
    finally:
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=30)
        kill_group(first)


def uploads_and_downloads(program: Program) -> None:
    """The same of files that go up to a broker and come down from it."""
    content = program.prompts.read_bytes()
    where = ["--data", str(program.data)]
    create = ["batch", "create", str(program.prompts), "--wait", *where]
    replies, errors = program.folder / "replies.jsonl", program.folder / "replies.errors.jsonl"
    for more in (["--output", str(program.prompts)], ["--output", str(replies), "--errors", str(program.prompts)]):
        for permitted in ([], ["--overwrite"]):
            ran = program.broker(*create, *more, *permitted)
            assert ran.code == 2
            assert "is the input itself" in ran.sentence
    ran = program.broker(*create, "--output", str(replies), "--errors", str(replies))
    assert "give them different names" in ran.sentence
    assert program.broker("batch", "list", *where).said == "There are no batches.\n"
    assert program.prompts.read_bytes() == content

    ran = program.broker(*create, "--output", str(replies), "--errors", str(errors))
    assert ran.code == 0, ran
    assert sorted(custom_ids(replies)) == THREE
    first, batch = replies.read_bytes(), ran.said.split()[0]
    ran = program.broker(*create, "--output", str(replies))
    assert (ran.code, ran.complained) == (
        0,
        f"replies.jsonl of an earlier run is kept as {program.folder / 'replies.1.jsonl'}\n",
    )
    assert (program.folder / "replies.1.jsonl").read_bytes() == first != replies.read_bytes()
    ran = program.broker("batch", "get", batch, "--output", str(replies), "--overwrite", *where)
    assert (ran.code, replies.read_bytes()) == (0, first)
    ran = program.broker("batch", "get", batch, "--output", str(program.catalog), *where)
    assert "something else than replies" in ran.sentence
    assert not list(program.folder.glob(".*.part"))
