"""What an OpenAI-shaped reply must hold. The reply comes from outside, so nothing in it is believed unchecked."""

from __future__ import annotations

from typing import Annotated

import msgspec

from broker.domain.errors import ErrorCode
from broker.domain.usage import Usage
from workers.engine import EngineError

__all__ = ["ENDPOINTS", "REQUEST_ID_CHARACTERS_MAX", "TOKENS_MAX", "code_of_status", "read_usage", "request_id_of"]

TOKENS_MAX = 100_000_000
"""No request has more tokens of one kind than this; a higher count is a lie that would spoil the ledger's sums."""

REQUEST_ID_CHARACTERS_MAX = 200

_Tokens = Annotated[int, msgspec.Meta(ge=0, le=TOKENS_MAX)]


class _InputDetails(msgspec.Struct):
    cached_tokens: _Tokens | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: _Tokens | None = None


class _Counts(msgspec.Struct):
    prompt_tokens: _Tokens
    completion_tokens: _Tokens | None = None
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None


class _ChatMessage(msgspec.Struct):
    role: str


class _ChatChoice(msgspec.Struct):
    message: _ChatMessage


class _TextChoice(msgspec.Struct):
    text: str


class _Vector(msgspec.Struct):
    embedding: list[float] | str  # a string where the request asked for base64


class _Reply(msgspec.Struct):
    usage: _Counts
    id: str | None = None


class _Chat(_Reply, kw_only=True):
    choices: Annotated[list[_ChatChoice], msgspec.Meta(min_length=1)]


class _Completion(_Reply, kw_only=True):
    choices: Annotated[list[_TextChoice], msgspec.Meta(min_length=1)]


class _Embedding(_Reply, kw_only=True):
    data: Annotated[list[_Vector], msgspec.Meta(min_length=1)]


_DECODERS: dict[str, msgspec.json.Decoder[_Reply]] = {
    "/v1/chat/completions": msgspec.json.Decoder(_Chat),
    "/v1/completions": msgspec.json.Decoder(_Completion),
    "/v1/embeddings": msgspec.json.Decoder(_Embedding),
}

ENDPOINTS = tuple(_DECODERS)


def code_of_status(status_code: int) -> ErrorCode:
    """What an HTTP status other than 2xx means; a redirect is none of the answers that an engine may give."""
    match status_code:
        case 408:
            return ErrorCode.ENGINE_TIMEOUT
        case 429:
            return ErrorCode.ENGINE_BUSY
        case 401 | 403 | 404 | 405:
            return ErrorCode.ENGINE_MISCONFIGURED
        case _ if 400 <= status_code < 500:
            return ErrorCode.ENGINE_REFUSED
        case _ if status_code >= 500:
            return ErrorCode.ENGINE_FAILED
        case _:
            return ErrorCode.ENGINE_INVALID_REPLY


def read_usage(endpoint: str, status_code: int, body: bytes) -> tuple[Usage, str]:
    """The usage and the id that a 2xx reply states.

    Raises EngineError(ENGINE_INVALID_REPLY) where the reply isn't UTF-8 JSON, lacks what `endpoint` promises,
    or counts tokens wrongly. The message names the field and never quotes the reply.
    """
    try:
        body.decode()  # msgspec lets bytes that aren't UTF-8 pass in the fields it skips
        reply = _DECODERS[endpoint].decode(body)
        return _usage_of(reply.usage, has_output=endpoint != "/v1/embeddings"), reply.id or ""
    except msgspec.ValidationError as error:
        reason = str(error)  # names types and the path, never values
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        reason = "not JSON"
    message = f"the engine's reply to {endpoint} is invalid: {reason}"
    raise EngineError(ErrorCode.ENGINE_INVALID_REPLY, message, status_code=status_code) from None


def request_id_of(text: str) -> str:
    """An id from outside, safe to store and log: printable ASCII, at most REQUEST_ID_CHARACTERS_MAX characters."""
    return text[:REQUEST_ID_CHARACTERS_MAX] if text.isascii() and text.isprintable() else ""


def _usage_of(counts: _Counts, *, has_output: bool) -> Usage:
    if has_output and counts.completion_tokens is None:
        raise msgspec.ValidationError("usage lacks completion_tokens")
    output_tokens = counts.completion_tokens or 0
    cached = (counts.prompt_tokens_details and counts.prompt_tokens_details.cached_tokens) or 0
    reasoning = (counts.completion_tokens_details and counts.completion_tokens_details.reasoning_tokens) or 0
    if cached > counts.prompt_tokens or reasoning > output_tokens:
        raise msgspec.ValidationError("usage counts a part of its tokens as more than all of them")
    return Usage(counts.prompt_tokens, cached, output_tokens, reasoning)
