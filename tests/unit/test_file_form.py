"""What is plainly no JSONL is told by its beginning; what may be JSONL never is refused for it."""

from __future__ import annotations

import json

import pytest

from broker.rules.file_form import FileForm, LineCount
from tests.unit.builders import a_line, some_lines

ROWS = [json.loads(a_line(name)) for name in ("a", "b")]
TEXT = some_lines(3).decode()


def seen(content: bytes, size: int) -> FileForm:
    form = FileForm()
    for start in range(0, len(content), size):
        form.see(content[start : start + size])
    return form


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("content", "word"),
    [
        (TEXT.encode("utf-16"), "UTF-16"),
        (TEXT.encode("utf-16-be"), "UTF-16"),
        (TEXT.encode("utf-16-le"), "UTF-16"),
        (b"\xfe\xff" + TEXT.encode("utf-16-be"), "UTF-16"),
        (TEXT.encode("utf-32"), "UTF-32"),
        (json.dumps(ROWS).encode(), "JSON array"),
        (json.dumps(ROWS, indent=2).encode(), "JSON array"),
        (b"\xef\xbb\xbf\n [\r\n" + b",\r\n".join([a_line("a"), a_line("b")]) + b"]", "JSON array"),
        (b"[\n", "JSON array"),
        (b",\n".join([a_line("a"), a_line("b")]), "commas"),
        (b"\n" + b" , \r\n".join([a_line("x" * 500), a_line("b")]), "commas"),
        (json.dumps(ROWS[0], indent=2).encode(), "several lines"),
        (b"PK\x03\x04" + b"x" * 300, "ZIP"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 300, "zstd"),
    ],
)
def test_another_form_is_named_and_what_to_do(content, word, size):
    form = seen(content, size)
    assert not form.is_blank
    assert word in form.fault
    assert "JSONL" in form.fault


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    "content",
    [
        some_lines(2),
        b"\xef\xbb\xbf" + some_lines(2),
        b"\r\n  \r\n" + some_lines(2),
        b"[1, 2]\n" + some_lines(2),
        b"not JSON\n" + some_lines(2),
        b"# a comment,\n" + some_lines(2),
        a_line("x" * 400) + b"\n" + a_line("b") + b",\n",
        a_line("a").replace(b"hi", b"\0\0"),
        '{"custom_id":"東京"}'.encode(),
        a_line("a").replace(b"}", b" }").replace(b"{", b"{ "),
    ],
)
def test_what_may_be_jsonl_is_left_to_its_lines(content, size):
    assert seen(content, size).fault is None


def test_a_first_line_of_which_more_is_to_come_has_no_end_yet():
    assert seen(b'{"custom_id":"a",', 100).fault is None


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\t\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
def test_a_file_of_nothing_is_blank(content):
    for size in (3, 100):
        assert seen(content, size).is_blank


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(("content", "lines"), [(b"", 0), (b"\n \n", 0), (b"a\n\r\n  b\n \n", 2), (b"a\r\nb", 2)])
def test_lines_that_hold_anything_are_counted(content, lines, size):
    count = LineCount()
    for start in range(0, len(content), size):
        count.see(content[start : start + size])
    assert count.lines == lines
