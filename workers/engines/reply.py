"""What an OpenAI-shaped answer holds. It comes from outside, so nothing in it is believed unchecked.

What was asked for is the result: a reply that holds it is delivered, whatever is odd around it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urljoin, urlsplit

import msgspec

from broker.domain.errors import ErrorCode
from broker.domain.usage import Usage, UsageBasis
from broker.rules.bounds import OUTPUT_TOKENS_DEFAULT, Asked, TokenRatios, asked_of
from broker.rules.evidence import code_of_answer, read_retry_after, words_of
from workers.engine import EngineError, EngineReply, EngineRequest, TokensUpper
from workers.engines.mending import mended
from workers.engines.stated import (
    CONTEXT_TOKENS_MAX,
    NEVER_FAR,
    TOKENS_MAX,
    UNSTATED,
    Stated,
    is_plausible,
    read_stated,
)

__all__ = ["ENDPOINTS", "REQUEST_ID_CHARACTERS_MAX", "TOKENS_MAX", "read_reply", "refusal", "request_id_of"]

REQUEST_ID_CHARACTERS_MAX = 200

_EMBEDDINGS = "/v1/embeddings"
_ERROR_BODY_BYTES_MAX = 1_000_000
_LOCATION_CHARACTERS_MAX = 200

_Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]


class _InputDetails(msgspec.Struct):
    cached_tokens: _Tokens | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: _Tokens | None = None


class _Counts(msgspec.Struct):
    """Usage as OpenAI writes it; whatever else a server writes is read by `stated`."""

    prompt_tokens: _Tokens
    completion_tokens: _Tokens | None = None
    total_tokens: _Tokens | None = None
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    prompt_cache_hit_tokens: _Tokens | None = None  # DeepSeek's name for cached_tokens


class _Message(msgspec.Struct):
    """An object; what is in it is the producer's business."""


class _ChatChoice(msgspec.Struct):
    message: _Message


class _TextChoice(msgspec.Struct):
    text: str


class _Vector(msgspec.Struct):
    embedding: list[float] | str  # a string where the request asked for base64


class _Chat(msgspec.Struct):
    choices: Annotated[list[_ChatChoice], msgspec.Meta(min_length=1)]


class _Completion(msgspec.Struct):
    choices: Annotated[list[_TextChoice], msgspec.Meta(min_length=1)]


class _Embedding(msgspec.Struct):
    data: Annotated[list[_Vector], msgspec.Meta(min_length=1)]


class _PlainChat(_Chat, kw_only=True):
    usage: _Counts
    id: str | None = None


class _PlainCompletion(_Completion, kw_only=True):
    usage: _Counts
    id: str | None = None


class _PlainEmbedding(_Embedding, kw_only=True):
    usage: _Counts
    id: str | None = None


_Plain = _PlainChat | _PlainCompletion | _PlainEmbedding
_Promised = _Chat | _Completion | _Embedding

# Nearly all replies are plain: one look reads them whole. The promise alone is looked for where one isn't.
_PLAIN: dict[str, msgspec.json.Decoder[_Plain]] = {
    "/v1/chat/completions": msgspec.json.Decoder(_PlainChat),
    "/v1/completions": msgspec.json.Decoder(_PlainCompletion),
    _EMBEDDINGS: msgspec.json.Decoder(_PlainEmbedding),
}
_PROMISED: dict[str, msgspec.json.Decoder[_Promised]] = {
    "/v1/chat/completions": msgspec.json.Decoder(_Chat),
    "/v1/completions": msgspec.json.Decoder(_Completion),
    _EMBEDDINGS: msgspec.json.Decoder(_Embedding),
}

ENDPOINTS = tuple(_PLAIN)

_fields_of = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
# What a proxy says in a 200 for the 4xx of the server behind it.
_REFUSING = frozenset(
    {
        ErrorCode.ENGINE_BUSY,
        ErrorCode.ENGINE_STARTING,
        ErrorCode.ENGINE_OUT_OF_CREDIT,
        ErrorCode.ENGINE_MISCONFIGURED,
        ErrorCode.ENGINE_UNSUITED,
        ErrorCode.ENGINE_REFUSED,
    }
)
_EMPTY = (b"null", b"false", b'""', b"{}", b"[]")
_NOT_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def read_reply(
    request: EngineRequest,
    status_code: int,
    body: bytes,
    *,
    request_id: str = "",
    context_tokens: int = 0,
    counts_one_choice: bool = False,
) -> EngineReply:
    """A 2xx answer as the reply to `request`, mended where it isn't quite JSON.

    `context_tokens` is the model's window, 0 where nobody says; `counts_one_choice`: the server's usage is of one
    answer, however many were asked for. Raises EngineError where what the endpoint promises isn't there: with the code
    and the words of the error that is there instead, else ENGINE_INVALID_REPLY, whose message names the field and never
    quotes the reply. The usage that such a reply states is in the error.
    """
    try:
        body.decode()  # msgspec lets bytes that aren't UTF-8 pass in the fields it skips
        plain = _PLAIN[request.endpoint].decode(body)
    except _NOT_JSON:
        whole, stated, reply_id, choices = _read_odd(request, status_code, body)
    else:
        whole, reply_id = body, plain.id or ""
        stated = _stated_plainly(plain.usage, has_output=request.endpoint != _EMBEDDINGS) or _stated(request, whole)
        choices = 1 if isinstance(plain, _PlainEmbedding) else len(plain.choices)
    if b'"error"' in whole:
        _look_for_error(request.endpoint, status_code, whole)
    stated = _believed(stated, request, context_tokens)
    if counts_one_choice and choices > 1 and stated.basis not in (UsageBasis.NONE, UsageBasis.IMPLAUSIBLE):
        stated = _of_one_choice(stated, request, choices, context_tokens)
    return EngineReply(
        status_code, whole, stated.usage, request_id_of(request_id or reply_id), stated.basis, _upper_of(stated)
    )


def refusal(
    status_code: int, body: bytes, headers: Mapping[str, str] | None = None, *, url: str = "", now_s: float = 0.0
) -> EngineError:
    """The error for an answer that isn't 2xx. `url` is what was asked; `now_s` the wall clock, in Unix seconds."""
    headers = headers or {}
    words = _printable(words_of(body))
    message = f"the engine answered HTTP {status_code}" + (f": {words}" if words else "")
    if 300 <= status_code < 400 and (location := _shown_location(url, headers.get("location", ""))):
        message = f"the engine answered HTTP {status_code}: it redirects to {location}, which is never followed"
    stated = UNSTATED if b'"usage"' not in body else _stated_in(_fields(body), has_output=True)
    return _with_stated(
        EngineError(
            code_of_answer(status_code, body),
            message,
            status_code=status_code,
            body=body,
            retry_after_s=read_retry_after(
                headers.get("retry-after", ""), now_s, milliseconds=headers.get("retry-after-ms", "")
            ),
            is_free=_is_free(status_code, words),
        ),
        stated,
    )


def request_id_of(text: str) -> str:
    """An id from outside, safe to store and log: printable ASCII, at most REQUEST_ID_CHARACTERS_MAX characters."""
    return text[:REQUEST_ID_CHARACTERS_MAX] if text.isascii() and text.isprintable() else ""


def _is_free(status_code: int, words: str) -> bool:
    """Whether such an answer costs nothing, as vendors bill: see `docs/engines.md`, which says where that is written.

    A proxy's 408, 499 or 5xx says nothing of what became of the call behind it. A prompt that a filter refused was
    read, and is billed.
    """
    if _is_filtered(words):
        return False
    return status_code in (503, 529) or (300 <= status_code < 500 and status_code not in (408, 499))


def _is_filtered(words: str) -> bool:
    return "content_filter" in words or "content management policy" in words


def _read_odd(request: EngineRequest, status_code: int, body: bytes) -> tuple[bytes, Stated, str, int]:
    """The body, its usage, its id, and how many choices, of a reply that isn't plain. Raises EngineError."""
    endpoint = request.endpoint
    whole, reason = body, "not JSON"
    for whole in (body, mended(body)):
        try:
            whole.decode()
            promised = _PROMISED[endpoint].decode(whole)
        except msgspec.ValidationError as error:
            reason = str(error)  # names types and the path, never values
        except _NOT_JSON:
            continue
        else:
            fields = _fields(whole)
            choices = 1 if isinstance(promised, _Embedding) else len(promised.choices)
            stated = _stated_in(fields, has_output=endpoint != _EMBEDDINGS)
            return whole, stated, _text_of(fields.get("id")), choices
    raise _without_promise(endpoint, status_code, whole, reason)


def _without_promise(endpoint: str, status_code: int, body: bytes, reason: str) -> EngineError:
    fields = _fields(body)
    told = _error_in(fields) or _bare_error_in(fields)
    if told is not None:
        return _of_told(endpoint, status_code, body, told)
    message = f"the engine's reply to {endpoint} is invalid: {reason}"
    error = EngineError(ErrorCode.ENGINE_INVALID_REPLY, message, status_code=status_code)
    return _with_stated(error, _stated_in(fields, has_output=endpoint != _EMBEDDINGS))


def _look_for_error(endpoint: str, status_code: int, body: bytes) -> None:
    """Raises EngineError where the answers are there and say nothing, but for an error beside them, or in the first."""
    fields = _fields(body)
    told = _error_in(fields)
    if told is not None and _says_nothing(fields):
        raise _of_told(endpoint, status_code, body, told)


def _of_told(endpoint: str, status_code: int, body: bytes, told: bytes) -> EngineError:
    code, words = code_of_answer(status_code, told), _printable(words_of(told))
    error = EngineError(
        code,
        f"the engine answered HTTP {status_code} with an error" + (f": {words}" if words else ""),
        status_code=status_code,
        body=body if len(body) <= _ERROR_BODY_BYTES_MAX else b"",
        is_free=code in _REFUSING and not _is_filtered(words),
    )
    return _with_stated(error, _stated_in(_fields(body), has_output=endpoint != _EMBEDDINGS))


def _error_in(fields: Mapping[str, msgspec.Raw]) -> bytes | None:
    """The error that a reply holds, as a body of its own; None where it holds none."""
    if bytes(fields.get("error", b"null")) not in _EMPTY:
        return b'{"error":%b}' % bytes(fields["error"])
    choices = _any_of(fields.get("choices"))
    first = choices[0] if isinstance(choices, list) and choices else None
    inner = first.get("error") if isinstance(first, dict) else None
    return msgspec.json.encode({"error": inner}) if inner else None


def _bare_error_in(fields: Mapping[str, msgspec.Raw]) -> bytes | None:
    """The same where the error's fields stand side by side, as older builds of vLLM write them."""
    if "message" not in fields and "detail" not in fields:
        return None
    names = ("message", "detail", "type", "code", "status", "status_code")
    return msgspec.json.encode({"error": {name: fields[name] for name in names if name in fields}})


def _fields(body: bytes) -> Mapping[str, msgspec.Raw]:
    try:
        return _fields_of(body)
    except _NOT_JSON:
        return {}


def _any_of(raw: msgspec.Raw | None) -> Any:  # noqa: ANN401 (JSON from outside)
    """The value, read by the decoder that takes any number; None where there is none."""
    try:
        return json.loads(bytes(raw)) if raw is not None else None
    except (ValueError, RecursionError):
        return None


def _text_of(raw: msgspec.Raw | None) -> str:
    value = _any_of(raw)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _stated_plainly(counts: _Counts, *, has_output: bool) -> Stated | None:
    """The usage where it adds up; None where it must be looked at."""
    output_tokens = counts.completion_tokens
    if output_tokens is None:
        if has_output:
            return None
        output_tokens = 0
    details = counts.prompt_tokens_details
    cached = (counts.prompt_cache_hit_tokens if details is None else details.cached_tokens) or 0
    reasoning = (counts.completion_tokens_details and counts.completion_tokens_details.reasoning_tokens) or 0
    if cached > counts.prompt_tokens or reasoning > output_tokens:
        return None
    if counts.total_tokens is not None and counts.total_tokens != counts.prompt_tokens + output_tokens:
        return None
    return Stated(Usage(counts.prompt_tokens, cached, output_tokens, reasoning), UsageBasis.ENGINE)


def _stated(request: EngineRequest, body: bytes) -> Stated:
    return _stated_in(_fields(body), has_output=request.endpoint != _EMBEDDINGS)


def _stated_in(fields: Mapping[str, msgspec.Raw], *, has_output: bool) -> Stated:
    usage = _any_of(fields.get("usage"))
    return read_stated(usage, has_output=has_output, says_nothing=_says_nothing(fields))


def _says_nothing(fields: Mapping[str, msgspec.Raw]) -> bool:
    """Whether all its answers are empty: then output tokens that are null are none."""
    choices = _any_of(fields.get("choices"))
    if not isinstance(choices, list):
        return False
    answers = [one.get("message", one) for one in choices if isinstance(one, dict)]
    spoken = ("content", "text", "tool_calls", "function_call", "reasoning", "reasoning_content", "refusal", "audio")
    return all(isinstance(answer, dict) and not any(answer.get(name) for name in spoken) for answer in answers)


def _believed(stated: Stated, request: EngineRequest, context_tokens: int) -> Stated:
    """The same, unless it is more than there can have been: then it is a bound, and no count."""
    usage, window = stated.usage, context_tokens or CONTEXT_TOKENS_MAX
    if usage.input_tokens <= window and usage.output_tokens <= min(NEVER_FAR, window):
        return stated  # whatever was asked for
    if is_plausible(usage, asked_of(request.endpoint, request.body), context_tokens):
        return stated
    return Stated(Usage(), UsageBasis.IMPLAUSIBLE, usage.input_tokens, usage.output_tokens)


def _of_one_choice(stated: Stated, request: EngineRequest, choices: int, context_tokens: int) -> Stated:
    """Usage that is of one of the answers: the others are as long as the request allows, at most."""
    asked = asked_of(request.endpoint, request.body)
    each = max(stated.usage.output_tokens, asked.output_tokens_max or context_tokens or OUTPUT_TOKENS_DEFAULT)
    return Stated(
        stated.usage,
        UsageBasis.INCONSISTENT,
        None if asked.prompts == 1 else max(stated.usage.input_tokens, _prompts_upper(asked)),
        stated.usage.output_tokens + (choices - 1) * each,
    )


def _prompts_upper(asked: Asked) -> int:
    return TokenRatios().input_upper(asked)


def _upper_of(stated: Stated) -> TokensUpper | None:
    return TokensUpper(stated.upper_input, stated.upper_output) if stated.is_bounded else None


def _with_stated(error: EngineError, stated: Stated) -> EngineError:
    if stated.basis is not UsageBasis.NONE:
        error.usage, error.usage_basis = stated.usage, stated.basis
    if stated is not UNSTATED:
        error.usage_upper = _upper_of(stated)
    return error


def _printable(text: str) -> str:
    """Fit for a line of a file, and for a database, which takes no NUL."""
    return text if text.isprintable() else "".join(one if one.isprintable() else " " for one in text)


def _shown_location(url: str, location: str) -> str:
    """Where a redirect points, without what may hold a secret: no query, no user."""
    try:
        parts = urlsplit(urljoin(url, location)) if location else None
    except ValueError:
        return ""
    if parts is None or not parts.hostname:
        return ""
    host = parts.netloc.rpartition("@")[2]
    return request_id_of(f"{parts.scheme}://{host}{parts.path}"[:_LOCATION_CHARACTERS_MAX])
