"""The forms in which a batch file comes up: as it is, packed with gzip, or as the one file of a form."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import multipart

from broker.api.errors import Refused
from broker.domain.errors import UsageError
from broker.intake.uploads import Spool

__all__ = ["Upload"]

_TAKEN = (
    "this route takes the batch file itself: JSONL as application/jsonl, application/x-ndjson, text/plain or"
    " application/octet-stream, also packed with gzip, or as the one file of multipart/form-data"
)
_FORM = "multipart/form-data"
_TYPES = frozenset(
    {
        "",
        "application/gzip",
        "application/jsonl",
        "application/jsonlines",
        "application/ndjson",
        "application/octet-stream",
        "application/x-gzip",
        "application/x-jsonl",
        "application/x-jsonlines",
        "application/x-ndjson",
        "application/x-www-form-urlencoded",  # what curl calls whatever --data-binary sends
    }
)
_ENCODINGS = frozenset({"", "identity", "gzip", "x-gzip"})
_PARTS_MAX = 16
_BESIDE_BYTES_MAX = 1_000_000


class Upload:
    """One request's body on its way to `spool`. Raises Refused for a body of another kind, before any of it is read."""

    def __init__(self, headers: Mapping[str, str], new_spool: Callable[[], Spool]) -> None:
        given = headers.get("content-type", "")
        kind, options = multipart.parse_options_header(given)
        kind = kind.strip().lower()
        encoding = headers.get("content-encoding", "").strip().lower()
        if encoding not in _ENCODINGS:
            raise _not_taken(f"Content-Encoding is {encoding[:80]!r}; {_TAKEN}")
        if kind not in _TYPES and kind != _FORM and not kind.startswith("text/"):
            raise _not_taken(f"Content-Type is {given[:80]!r}; {_TAKEN}")
        self._form: _Form | None = None
        if kind == _FORM:
            if encoding not in {"", "identity"}:
                raise _not_taken(f"Content-Encoding is {encoding!r} for a form; pack the file in it instead")
            self._form = _Form(options.get("boundary", ""))
        self.spool = new_spool()

    def add(self, chunk: bytes) -> None:
        """The body's next bytes. Raises FileTooLarge, UsageError."""
        if self._form is None:
            self.spool.add(chunk)
            return
        for piece in self._form.pieces(chunk):
            self.spool.add(piece)

    def end(self) -> None:
        """All of the body has come. Raises UsageError for a form without its file, Refused for what is no file."""
        if self._form is not None:
            self._form.end()
        if self.spool.form.is_create_call:
            raise _not_taken(f"the body is OpenAI's call for a file that was uploaded before; {_TAKEN}")


class _Form:
    def __init__(self, boundary: str) -> None:
        try:
            self._parser = multipart.PushMultipartParser(boundary, max_segment_count=_PARTS_MAX)
        except (multipart.MultipartError, UnicodeError):
            raise UsageError(f"the form's boundary is {boundary[:80]!r}, which is none") from None
        self._files = 0
        self._is_in_file = False
        self._beside_bytes = 0

    def pieces(self, chunk: bytes) -> list[bytes]:
        """Those of its file. Other fields, such as OpenAI's `purpose`, are passed over."""
        found = []
        try:
            for event in self._parser.parse(chunk) if chunk and not self._parser.closed else ():
                if isinstance(event, multipart.MultipartSegment):
                    self._begin(event)
                elif event is not None and self._is_in_file:
                    found.append(bytes(event))
        except multipart.MultipartError as error:
            raise UsageError(f"the form can't be read: {error}") from None
        self._beside_bytes += len(chunk) - sum(map(len, found))
        if self._beside_bytes > _BESIDE_BYTES_MAX:
            raise UsageError(f"the form has more than {_BESIDE_BYTES_MAX:,} bytes beside its file")
        return found

    def _begin(self, part: multipart.MultipartSegment) -> None:
        self._is_in_file = bool(part.filename) or part.name == "file"
        self._files += self._is_in_file
        if self._files > 1:
            raise UsageError("the form has more than one file; a batch is made of one")

    def end(self) -> None:
        try:
            self._parser.close()
        except multipart.MultipartError:
            raise UsageError("the form's end is missing") from None
        if not self._files:
            raise UsageError("the form has no file: curl -F file=@FILE sends one")


def _not_taken(message: str) -> Refused:
    return Refused(415, "unsupported_media_type", message, field="file")
