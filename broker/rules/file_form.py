"""Whether a file is JSONL at all: what is plainly something else is refused whole, in one sentence, and nothing runs.

A file of good and bad lines is JSONL. This is about files of which no line, or by chance one, would be read.
"""

from __future__ import annotations

import re

__all__ = ["FileForm", "LineCount"]

_HEAD_BYTES = 256
_BOM = b"\xef\xbb\xbf"
_JSONL = "a batch file is JSONL in UTF-8, one request on each line"

_MAGIC = {
    b"\xff\xfe\0\0": "in UTF-32",
    b"\0\0\xfe\xff": "in UTF-32",
    b"\xff\xfe": "in UTF-16, as Windows PowerShell writes it",
    b"\xfe\xff": "in UTF-16",
    b"PK\x03\x04": "a ZIP archive or a spreadsheet",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\xfd7zXZ\0": "compressed with xz",
    b"\x1f\x8b": "packed with gzip more than once",
    b"BZh": "compressed with bzip2",
    b"%PDF": "a PDF",
    b"PAR1": "in Parquet",
}
_UTF_16_SHARE = 3  # of text in Latin letters every second byte is NUL; whoever writes Chinese has a mark before it


class FileForm:
    """Watches a file go by, in pieces of any size, and keeps no more of it than a few hundred bytes."""

    def __init__(self) -> None:
        self._head = b""
        self._begun = b""  # of a mark that may stand at the beginning
        self._start = b""
        self._last = b""
        self._in_first_line = True

    @property
    def is_blank(self) -> bool:
        """Whether nothing but white space, or nothing at all, has come."""
        return not self._start and not self._begun.removeprefix(_BOM)

    @property
    def is_create_call(self) -> bool:
        """Whether it is no file but OpenAI's request for a batch of one."""
        return b'"input_file_id"' in self._start and b'"custom_id"' not in self._start

    def see(self, piece: bytes) -> None:
        """The next bytes."""
        if not self._in_first_line and len(self._start) >= _HEAD_BYTES:
            return
        if len(self._head) < _HEAD_BYTES:
            self._head += piece[: _HEAD_BYTES - len(self._head)]
        if not self._start:
            piece = self._begun + piece
            if _BOM.startswith(piece):
                self._begun = piece
                return
            self._begun = b""
            piece = piece.removeprefix(_BOM).lstrip()
        if len(self._start) < _HEAD_BYTES:
            self._start += piece[: _HEAD_BYTES - len(self._start)]
        if self._in_first_line:
            line, end, _ = piece.partition(b"\n")
            self._in_first_line = not end
            self._last = line.rstrip()[-1:] or self._last

    @property
    def fault(self) -> str | None:
        """Why it can't be a batch file, as a sentence that goes on after its name; None where it may be one."""
        for magic, what in _MAGIC.items():
            if self._head.startswith(magic):
                return f"is {what}; {_JSONL}: save it as that"
        if self._head.count(0) * _UTF_16_SHARE >= len(self._head) > 0:
            return f"is in UTF-16 or holds binary data; {_JSONL}: save it as that"
        if re.match(rb"\[\s*(\{|$)", self._start):
            return f"is one JSON array; {_JSONL}: jq -c '.[]' makes that of it"
        if not self._in_first_line and self._start.startswith(b"{") and self._last == b",":
            return f"has commas at the ends of its lines; {_JSONL} and nothing between them: take the commas off"
        if re.match(rb"\{\s*\n", self._start):
            return f"is JSON spread over several lines; {_JSONL}: jq -c . makes that of it"
        return None


class LineCount:
    """How many lines that hold anything have come, in pieces of any size; the last one may still go on."""

    def __init__(self) -> None:
        self._ended = 0
        self._holds_anything = False

    @property
    def lines(self) -> int:
        """With the one that was begun."""
        return self._ended + self._holds_anything

    def see(self, piece: bytes) -> None:
        """The next bytes."""
        *ended, rest = piece.split(b"\n")
        for part in ended:
            self._ended += self._holds_anything or bool(part.strip())
            self._holds_anything = False
        self._holds_anything = self._holds_anything or bool(rest.strip())
