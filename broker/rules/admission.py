"""What may run, a batch's line or a single job: all else is refused with a code and one clear sentence."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, ClassVar

import msgspec

from broker.domain.errors import ErrorCode
from broker.domain.job import ENDPOINTS, AcceptedLine, RefusedLine
from broker.rules.beginnings import digest_of
from broker.rules.line_names import written_name

__all__ = ["BODY_BYTES_MAX", "CUSTOM_ID_CHARS_MAX", "Checked", "Refusal", "admit_line", "check_request", "refuse_line"]

CUSTOM_ID_CHARS_MAX = 512

BODY_BYTES_MAX = 3_000_000
"""Of a single job: thousands of them may wait at the door, in memory."""


class Refusal(msgspec.Struct, frozen=True):
    """Why something may not run; `field` is the part of it that says so."""

    code: ErrorCode
    field: str
    message: str


_PROMPT_BEGINNING = 1_024
_NOTHING = msgspec.Raw()


class Checked(msgspec.Struct, frozen=True):
    """A request that may run: its model, and the digest of its prompt's beginning (`rules.beginnings`)."""

    model: str
    beginning: bytes


class _Line(msgspec.Struct):
    custom_id: str
    url: str
    body: msgspec.Raw
    method: str


class _LineName(msgspec.Struct):
    custom_id: str | None = None


class _Chat(msgspec.Struct):
    model: str
    messages: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1)]
    stream: bool | None = None
    tools: msgspec.Raw = _NOTHING
    response_format: msgspec.Raw = _NOTHING
    lacks: ClassVar[str] = ""

    @property
    def beginning(self) -> bytes:
        before_last = self.messages[:-1]
        if self.tools or self.response_format:
            return digest_of([*before_last, b"tools", self.tools, self.response_format])
        return digest_of(before_last)


class _Completion(msgspec.Struct):
    model: str
    prompt: str | list[msgspec.Raw] | None = None
    prompt_embeds: msgspec.Raw = _NOTHING  # vLLM's: the prompt as vectors, in place of its text
    stream: bool | None = None

    @property
    def lacks(self) -> str:
        return "prompt" if self.prompt is None and _is_none(self.prompt_embeds) else ""

    @property
    def beginning(self) -> bytes:
        if self.prompt is None or len(self.prompt) <= _PROMPT_BEGINNING:
            return b""  # it is all the job's own; a list is of other prompts, or of so few tokens
        begun = self.prompt[:_PROMPT_BEGINNING]
        return digest_of([begun.encode()] if isinstance(begun, str) else begun)


class _Embedding(msgspec.Struct):
    model: str
    input: str | list[msgspec.Raw] | None = None
    messages: list[msgspec.Raw] | None = None  # vLLM's: what is to be embedded as a chat, for pictures

    @property
    def lacks(self) -> str:
        return "input" if self.input is None and not self.messages else ""

    @property
    def beginning(self) -> bytes:
        return b""


def _is_none(raw: msgspec.Raw) -> bool:
    return not raw or bytes(raw) == b"null"


_line_decoder = msgspec.json.Decoder(_Line)
_name_decoder = msgspec.json.Decoder(_LineName)
_body_decoders: dict[str, msgspec.json.Decoder[_Chat | _Completion | _Embedding]] = {
    "/v1/chat/completions": msgspec.json.Decoder(_Chat),
    "/v1/completions": msgspec.json.Decoder(_Completion),
    "/v1/embeddings": msgspec.json.Decoder(_Embedding),
}

_AZURE_URLS = {endpoint.removeprefix("/v1"): endpoint for endpoint in ENDPOINTS}
"""As Azure's batch files write them."""


def refuse_line(line_number: int, line: bytes, code: ErrorCode, message: str) -> RefusedLine:
    """A line that will not run, by its custom_id where `line`, which may be its beginning alone, says it."""
    return RefusedLine(line_number, _custom_id_of(line), code, message)


def admit_line(line_number: int, line: bytes, models: Collection[str]) -> AcceptedLine | RefusedLine:
    """What becomes of one non-empty line. `models` are those that some lane runs; doubles are the caller's."""
    try:
        if not line.isascii():
            line.decode()  # what the decoder skips, it does not check
        parsed = _line_decoder.decode(line)
    except msgspec.ValidationError as error:
        name = _custom_id_of(line)
        code = ErrorCode.INVALID_LINE if name else ErrorCode.INVALID_CUSTOM_ID
        return RefusedLine(line_number, name, code, f"the line is not of the batch format: {error}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return refuse_line(line_number, line, ErrorCode.INVALID_LINE, f"the line is not valid JSON in UTF-8: {error}")
    return _check_id(line_number, parsed) or _check_request(line_number, parsed, models)


def _custom_id_of(line: bytes) -> str | None:
    """The name of a line that is refused, where it has one that an accepted line could have."""
    try:
        custom_id = _name_decoder.decode(line).custom_id
    except msgspec.ValidationError:
        return None  # it is no object, or calls itself something else than a text
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        custom_id = written_name(line)
    return None if custom_id is None or _what_is_wrong(custom_id) else custom_id


def _check_id(line_number: int, line: _Line) -> RefusedLine | None:
    wrong = _what_is_wrong(line.custom_id)
    if wrong is None:
        return None
    message = f"custom_id {wrong}; it must have 1 to {CUSTOM_ID_CHARS_MAX} and none of them NUL"
    return RefusedLine(line_number, None, ErrorCode.INVALID_CUSTOM_ID, message)


def _what_is_wrong(custom_id: str) -> str | None:
    if not 0 < len(custom_id) <= CUSTOM_ID_CHARS_MAX:
        return f"has {len(custom_id)} characters"
    return "holds a NUL character" if "\0" in custom_id else None


def _check_request(line_number: int, line: _Line, models: Collection[str]) -> AcceptedLine | RefusedLine:
    def refuse(code: ErrorCode, message: str) -> RefusedLine:
        return RefusedLine(line_number, line.custom_id, code, message)

    if line.method != "POST":
        return refuse(ErrorCode.INVALID_LINE, f"method is {line.method[:20]!r}; only POST is served")
    endpoint = _AZURE_URLS.get(line.url, line.url)
    found = check_request(endpoint, line.body, models, endpoint_field="url", kind="batch")
    if isinstance(found, Refusal):
        return refuse(found.code, found.message)
    return AcceptedLine(line_number, line.custom_id, endpoint, found.model, bytes(line.body), found.beginning)


def check_request(
    endpoint: str, body: bytes | msgspec.Raw, models: Collection[str], *, endpoint_field: str, kind: str
) -> Checked | Refusal:
    """What a request is, if it may run. `kind` of work, as a message calls it."""
    decoder = _body_decoders.get(endpoint)
    if decoder is None:
        served = ", ".join(ENDPOINTS)
        message = f"{endpoint_field} is {endpoint[:80]!r}; it must be one of {served}"
        return Refusal(ErrorCode.INVALID_URL, endpoint_field, message)
    try:
        request = decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Refusal(ErrorCode.INVALID_BODY, "body", f"body: {error}")
    if request.lacks:
        return Refusal(ErrorCode.INVALID_BODY, "body", f"body: Object missing required field `{request.lacks}`")
    if getattr(request, "stream", None):
        message = f"body.stream is true; a {kind}'s replies can't be streamed"
        return Refusal(ErrorCode.STREAMING_UNSUPPORTED, "body.stream", message)
    if request.model not in models:
        known = ", ".join(sorted(models))
        message = f"body.model is {request.model[:80]!r}; the lanes run {known}"
        return Refusal(ErrorCode.UNKNOWN_MODEL, "body.model", message)
    return Checked(request.model, request.beginning)
