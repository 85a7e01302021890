"""What people give by mistake: what the program says, how it exits, and what it leaves behind.

CASES is the whole table; `python -m tests.flow.test_bad_input` prints it as Markdown.
"""

from __future__ import annotations

import fcntl
import gzip
import os
import sqlite3
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.flow.program import Program, Ran, custom_ids, encoded, lines_of, request

GOOD = [encoded(request(number)) for number in range(3)]
NOTHING = "no output, no call"
JSONL = "a batch file is JSONL in UTF-8, one request on each line"
NOT_OURS = "FOLDER/data/broker.db is not an Inference Broker database."
ALL_THREE = "3 replies, 0 errors, 3 calls"


class Case(NamedTuple):
    """`said` is the sentence on standard error, empty for none; in `left`, errors are `line N code`."""

    given: str
    prepare: Callable[[Program], object]
    code: int
    said: str
    left: str


def write(content: bytes) -> Callable[[Program], object]:
    return lambda program: program.prompts.write_bytes(content)


def lines(*content: bytes) -> Callable[[Program], object]:
    return write(b"".join(line + b"\n" for line in content))


def body(**fields: object) -> bytes:
    return encoded(request(7, body={"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}))


def database(content: bytes) -> Callable[[Program], object]:
    def prepare(program: Program) -> None:
        lines(*GOOD)(program)
        program.data.mkdir()
        (program.data / "broker.db").write_bytes(content)

    return prepare


def foreign_database(program: Program) -> None:
    database(b"")(program)
    connection = sqlite3.connect(program.data / "broker.db")
    connection.execute("CREATE TABLE account (name TEXT)")
    connection.commit()
    connection.close()


def newer_database(program: Program) -> None:
    lines(*GOOD)(program)
    assert program.broker("db", "upgrade", "--data", str(program.data)).code == 0
    connection = sqlite3.connect(program.data / "broker.db")
    connection.execute("UPDATE broker_schema SET version_num = '9999', oldest_served = '9998'")
    connection.commit()
    connection.close()


def data_in_use(program: Program) -> None:
    lines(*GOOD)(program)
    program.data.mkdir()
    # The descriptor stays open, and the lock with it, until these tests end.
    holder = os.open(program.data / "broker.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(holder, fcntl.LOCK_EX)
    os.pwrite(holder, b"4711\n", 0)


def output_folder_is_a_file(program: Program) -> None:
    lines(*GOOD)(program)
    (program.folder / "taken").touch()
    program.output, program.errors = (
        program.folder / "taken" / "out.jsonl",
        program.folder / "taken" / "out.errors.jsonl",
    )


def output_is_a_folder(program: Program) -> None:
    lines(*GOOD)(program)
    program.output.mkdir()


def data_is_a_file(program: Program) -> None:
    lines(*GOOD)(program)
    program.data.touch()


TAKEN = "can't write FOLDER/taken/out.jsonl: File exists"
IS_FOLDER = "can't write FOLDER/out.jsonl: it is a folder"
IN_USE = "FOLDER/data is in use by another broker (process 4711): stop it, or name another folder with --data"
NEWER = (
    "The database at FOLDER/data/broker.db was written by a newer version of Inference Broker"
    " (schema 9999, this program knows up to 0011): upgrade the program."
)

CASES = [
    Case(
        "a file that is not there",
        lambda _: None,
        2,
        "can't read FOLDER/prompts.jsonl: No such file or directory",
        NOTHING,
    ),
    Case("a folder", lambda p: p.prompts.mkdir(), 2, "can't read FOLDER/prompts.jsonl: Is a directory", NOTHING),
    Case("an empty file", write(b""), 2, "FOLDER/prompts.jsonl is empty: there is nothing to run", NOTHING),
    Case("blank lines only", write(b"\n \n\n"), 2, "FOLDER/prompts.jsonl is empty: there is nothing to run", NOTHING),
    Case("blank lines between and after", write(b"\n" + b"\n \r\n".join(GOOD) + b"\n\n"), 0, "", ALL_THREE),
    Case(
        "UTF-16, as of PowerShell",
        write((b"\r\n".join(GOOD) + b"\r\n").decode().encode("utf-16")),
        1,
        f"FOLDER/prompts.jsonl is in UTF-16, as Windows PowerShell writes it; {JSONL}: save it as that",
        NOTHING,
    ),
    Case(
        "a JSON array",
        write(b"[" + b",\n".join(GOOD) + b"]\n"),
        1,
        f"FOLDER/prompts.jsonl is one JSON array; {JSONL}: jq -c '.[]' makes that of it",
        NOTHING,
    ),
    Case(
        "commas at the ends of lines",
        write(b",\n".join(GOOD) + b"\n"),
        1,
        f"FOLDER/prompts.jsonl has commas at the ends of its lines; {JSONL} and nothing between them:"
        " take the commas off",
        NOTHING,
    ),
    Case("a file packed with gzip", write(gzip.compress(b"\n".join(GOOD))), 0, "", ALL_THREE),
    Case(
        "a file packed with gzip, cut off",
        write(gzip.compress(b"\n".join(GOOD))[:-9]),
        2,
        "the file is packed with gzip, and its end is missing",
        NOTHING,
    ),
    Case("no newline at the end", write(b"\n".join(GOOD)), 0, "", ALL_THREE),
    Case("Windows line ends (CRLF)", write(b"\r\n".join(GOOD) + b"\r\n"), 0, "", ALL_THREE),
    Case("a byte order mark (BOM)", write(b"\xef\xbb\xbf" + b"\n".join(GOOD) + b"\n"), 0, "", ALL_THREE),
    Case(
        "a line that is not UTF-8",
        lines(GOOD[0], b'{"custom_id": "\xff\xfe"}', GOOD[1]),
        0,
        "",
        "2 replies, 1 errors (line 2 invalid_line), 2 calls",
    ),
    Case(
        "UTF-8 broken inside a prompt",
        lines(GOOD[0], GOOD[2].replace(b"say", b"s\xc3y"), GOOD[1]),
        0,
        "",
        "2 replies, 1 errors (line 2 invalid_line), 2 calls",
    ),
    Case("a line of 20 MB", lines(GOOD[0], GOOD[2].replace(b"say", b"x" * 20_000_000), GOOD[1]), 0, "", ALL_THREE),
    Case(
        "a line of 65 MB",
        lines(GOOD[0], GOOD[2].replace(b"say", b"x" * 65_000_000), GOOD[1]),
        0,
        "",
        "2 replies, 1 errors (line 2 line_too_large), 2 calls",
    ),
    Case(
        "a custom_id twice",
        lines(GOOD[0], GOOD[1], GOOD[0]),
        0,
        "",
        "2 replies, 1 errors (line 3 duplicate_custom_id), 2 calls",
    ),
    Case(
        "a model that no lane runs",
        lines(GOOD[0], body(model="other")),
        0,
        "",
        "1 replies, 1 errors (line 2 unknown_model), 1 calls",
    ),
    Case(
        "stream: true",
        lines(GOOD[0], body(stream=True)),
        0,
        "",
        "1 replies, 1 errors (line 2 streaming_unsupported), 1 calls",
    ),
    Case("an output folder that is a file", output_folder_is_a_file, 2, TAKEN, NOTHING),
    Case("an output file that is a folder", output_is_a_folder, 2, IS_FOLDER, NOTHING),
    Case(
        "a data folder that is a file",
        data_is_a_file,
        2,
        "can't write in the data folder FOLDER/data: File exists",
        NOTHING,
    ),
    Case("a data folder in use by a second run", data_in_use, 1, IN_USE, NOTHING),
    Case("a database file of anything", database(b"hello world" * 1_000), 1, NOT_OURS, NOTHING),
    Case("a damaged database", database(b"SQLite format 3\0" + b"\x13" * 8_000), 1, NOT_OURS, NOTHING),
    Case("another program's SQLite file", foreign_database, 1, NOT_OURS, NOTHING),
    Case("a database of a newer program", newer_database, 1, NEWER, NOTHING),
]


def left_by(program: Program) -> str:
    calls = len(program.calls())
    if not program.output.is_file():
        if calls == 0:
            return NOTHING
        # What was paid for must not be lost: with the obstacle gone, the same file gives all of it, uncalled.
        program.output, program.errors = program.folder / "free.jsonl", program.folder / "free.errors.jsonl"
        program.finish()
        assert len(custom_ids(program.output)) == calls == len(program.calls())
        return f"no output, {calls} calls, resumable"
    errors = lines_of(program.errors)
    said = ", ".join(f"line {line['error']['line']} {line['error']['code']}" for line in errors)
    where = f" ({said})" if said else ""
    return f"{len(custom_ids(program.output))} replies, {len(errors)} errors{where}, {calls} calls"


def outcome_of(case: Case, folder: Path) -> tuple[Ran, str]:
    folder.mkdir()
    program = Program(folder)
    case.prepare(program)
    ran = program.run()
    return ran._replace(complained=ran.complained.replace(str(folder), "FOLDER")), left_by(program)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, Future[tuple[Ran, str]]]:
    """All cases, some at a time: most of a small run is waiting."""
    folder = tmp_path_factory.mktemp("cases")
    with ThreadPoolExecutor(4) as pool:
        return {
            case.given: pool.submit(outcome_of, case, folder / f"case-{number}") for number, case in enumerate(CASES)
        }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.given)
def test_what_is_given_by_mistake_is_told_in_one_sentence(case, outcomes):
    ran, left = outcomes[case.given].result()
    assert (ran.code, ran.sentence if ran.complained else "", left) == (case.code, case.said, case.left)


def main() -> None:
    """The table, from what really happens."""
    print("| Given | Said | Exit code | Left |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        for number, case in enumerate(CASES):
            ran, left = outcome_of(case, Path(name) / str(number))
            said = ran.sentence if ran.complained else "-"
            print(f"| {case.given} | {said} | {ran.code} | {left} |")


if __name__ == "__main__":
    main()
