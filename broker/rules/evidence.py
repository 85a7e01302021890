"""Evidence: what an engine's answer says about the server, and what it says about the job.

An answer becomes an error code here and nowhere else, and a code speaks for one of five things. Whether a job is then
tried again, where, and whether that counts against it, follows in `rules.settling`.
"""

from __future__ import annotations

import math
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

import msgspec

from broker.domain.errors import ErrorCode

__all__ = [
    "RETRY_AFTER_LONG_S",
    "RETRY_AFTER_MAX_S",
    "Evidence",
    "code_of_answer",
    "evidence_of",
    "holds_error",
    "read_retry_after",
    "words_of",
]


class Evidence(Enum):
    """What a code speaks about."""

    SERVER = "server"  # the server's trouble, whatever the job: the lane rests and the job waits, uncounted
    LIMIT = "limit"  # the server takes no more now: less is sent, and where it takes nothing, as SERVER
    OPEN = "open"  # either: the server's while it does nothing else, the job's where others succeed meanwhile
    UNSUITED = "unsuited"  # this server can't do this job; another lane may
    JOB = "job"  # the request itself: final, unless this lane says so to all


_EVIDENCE = {
    ErrorCode.ENGINE_BUSY: Evidence.LIMIT,
    ErrorCode.ENGINE_STARTING: Evidence.SERVER,
    ErrorCode.ENGINE_UNAVAILABLE: Evidence.LIMIT,  # also what a server says whose queue is full
    ErrorCode.ENGINE_UNREACHABLE: Evidence.SERVER,
    ErrorCode.ENGINE_OUT_OF_CREDIT: Evidence.SERVER,
    ErrorCode.ENGINE_MOVED: Evidence.SERVER,
    ErrorCode.ENGINE_MISCONFIGURED: Evidence.OPEN,  # a 404 may be of one job's own name for its model
    ErrorCode.ENGINE_FAILED: Evidence.OPEN,
    ErrorCode.ENGINE_TIMEOUT: Evidence.OPEN,
    ErrorCode.ENGINE_INVALID_REPLY: Evidence.OPEN,
    ErrorCode.ENGINE_UNSUITED: Evidence.UNSUITED,
    ErrorCode.ENGINE_REFUSED: Evidence.JOB,
}

# 430, 498, 509 and 529 are what Shopify, Groq, several hosts and Anthropic say for 429; 520 to 524 are Cloudflare's,
# 530 too; 499 is nginx's for a client that went, 598 and 599 are proxies' time-outs.
_BUSY = frozenset({429, 430, 498, 509, 529})
_UNAVAILABLE = frozenset(
    {408, 409, 423, 424, 425, 449, 460, 499, 502, 503, 504, 507, 508, 598, 599, *range(520, 528), 530}
)
_MISCONFIGURED = frozenset({401, 403, 404, 405, 407, 410, 421, 426, 495, 496, 497, 501, 505, 511})

RETRY_AFTER_MAX_S = 3_600.0
"""A server that asks for more is asked again after an hour all the same: its jobs have deadlines."""

RETRY_AFTER_LONG_S = 5.0
"""What a worker waits out by itself. Of a server that asks for more its broker must know, or it goes on sending."""

# What servers write, in lower case. Where a phrase is only one server's, it is named.
_TOO_LONG = (
    "context_length_exceeded",
    "exceed_context_size",  # llama.cpp
    "context length",
    "context window",
    "context size",
    "maximum model length",  # vLLM
    "max_model_len",
    "maximum sequence length",
    "prompt is too long",  # Anthropic
    "input is too long",
    "too large to process",  # llama.cpp's embeddings
    "too many tokens",
    "inputs tokens + max_new_tokens",  # TGI
    "reduce the length",
    "string_above_max_length",
)
_NOT_THIS_KIND = (
    "is not a multimodal model",  # vLLM
    "image input is not supported",  # llama.cpp
    "audio input is not supported",
    "mmproj",
    "does not support image",
    "not support images",
    "does not support vision",
    "does not support multimodal",
    "image_url is not supported",
    "does not support embeddings",
    "does not support tool",
    "does not support chat",
)
_NO_CREDIT = (
    "insufficient_quota",
    "insufficient credit",
    "insufficient balance",
    "insufficient_credits",
    "credit balance",
    "out of credit",
    "billing_hard_limit",
    "billing_not_active",
    "payment required",
    "exceeded your current quota",
)
_LOADING = (
    "loading model",
    "model is loading",
    "currently loading",
    "model is not ready",
    "still loading",
    "warming up",
)
_NO_MODEL = ("model_not_found", "model not found", "unknown model", "no such model", "could not find real modelid")
_NO_KEY = ("invalid_api_key", "invalid api key", "api key not valid", "incorrect api key")
_LIMITED = ("rate_limit", "rate limit", "too many requests", "overloaded", "throttl")

_LOOKED_AT = 4_096
_WORDS_MAX = 300


def evidence_of(code: ErrorCode) -> Evidence | None:
    """What the code speaks about; None for codes that no answer of an engine has."""
    return _EVIDENCE.get(code)


def code_of_answer(status_code: int, body: bytes) -> ErrorCode:
    """What an answer that isn't the promised one is called; a 2xx is judged by the error that it holds.

    The body's own words decide where a status alone doesn't: that a prompt is too long comes as 400, 413, 422 or 500.
    """
    words = words_of(body).lower()
    if 200 <= status_code < 300:
        inner = _inner_status(body)
        return code_of_answer(inner, body) if inner else _by_words(words) or ErrorCode.ENGINE_INVALID_REPLY
    if 300 <= status_code < 400:
        return ErrorCode.ENGINE_MOVED
    if status_code == 402:
        return ErrorCode.ENGINE_OUT_OF_CREDIT
    if status_code in _BUSY:
        return ErrorCode.ENGINE_OUT_OF_CREDIT if _any(_NO_CREDIT, words) else ErrorCode.ENGINE_BUSY
    if status_code in _UNAVAILABLE:
        return ErrorCode.ENGINE_STARTING if _any(_LOADING, words) else ErrorCode.ENGINE_UNAVAILABLE
    if status_code in _MISCONFIGURED:
        return ErrorCode.ENGINE_OUT_OF_CREDIT if _any(_NO_CREDIT, words) else ErrorCode.ENGINE_MISCONFIGURED
    return _of_others(status_code, words)


def _of_others(status_code: int, words: str) -> ErrorCode:
    if found := _by_words(words):
        return found
    if 400 <= status_code < 500:
        # Its limit for a body is the server's own, and often a proxy's before it.
        return ErrorCode.ENGINE_UNSUITED if status_code == 413 else ErrorCode.ENGINE_REFUSED
    return ErrorCode.ENGINE_FAILED if status_code >= 500 else ErrorCode.ENGINE_INVALID_REPLY


def _by_words(words: str) -> ErrorCode | None:
    for phrases, code in (
        (_TOO_LONG, ErrorCode.ENGINE_UNSUITED),
        (_NOT_THIS_KIND, ErrorCode.ENGINE_UNSUITED),
        (_NO_CREDIT, ErrorCode.ENGINE_OUT_OF_CREDIT),
        (_LOADING, ErrorCode.ENGINE_STARTING),
        (_NO_KEY, ErrorCode.ENGINE_MISCONFIGURED),
        (_NO_MODEL, ErrorCode.ENGINE_MISCONFIGURED),
        (_LIMITED, ErrorCode.ENGINE_BUSY),
    ):
        if _any(phrases, words):
            return code
    return None


def _any(phrases: tuple[str, ...], words: str) -> bool:
    return any(phrase in words for phrase in phrases)


def holds_error(body: bytes) -> bool:
    """Whether a JSON body says that something went wrong, whatever its status."""
    found = _decoded(body)
    return isinstance(found, dict) and bool(found.get("error"))


def words_of(body: bytes) -> str:
    """The server's own words in an error body: its message, with its type and code; empty where it has none.

    Only fields that hold such words are looked at: what else a server sends back may be the prompt.
    """
    found = _decoded(body)
    said = _said(found) if found is not None else _plain_text(body)
    return " ".join(" ".join(said).split())[:_WORDS_MAX]


def _plain_text(body: bytes) -> list[str]:
    """Of a body that isn't JSON: its beginning, unless it is a page for a browser."""
    text = body[:_LOOKED_AT].decode("utf-8", "replace").strip()
    return [] if text.startswith("<") else [text]


def _said(found: Any) -> list[str]:  # noqa: ANN401 (JSON from outside)
    match found:
        case str():
            return [found]
        case dict():
            inner = found.get("error", found.get("detail"))
            own = [found[name] for name in ("message", "msg", "type", "code") if isinstance(found.get(name), str)]
            return own + (_said(inner) if inner is not None else [])
        case list():
            return [word for one in found[:3] for word in _said(one)]
        case _:
            return []


def _decoded(body: bytes) -> Any:  # noqa: ANN401 (JSON from outside)
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _inner_status(body: bytes) -> int:
    """The status that an error inside a 2xx reply names; 0 where it names none."""
    found = _decoded(body)
    error = found.get("error") if isinstance(found, dict) else None
    named = [error.get(name) for name in ("code", "status", "status_code")] if isinstance(error, dict) else []
    for one in named:
        try:
            status = int(one)  # type: ignore[arg-type]  # what it can't take is caught
        except (TypeError, ValueError):
            continue
        if 300 <= status <= 599:
            return status
    return 0


def read_retry_after(value: str, now_s: float, *, milliseconds: str = "") -> float:
    """For how many seconds from now the server asks to be left alone, RETRY_AFTER_MAX_S at most; 0 for none.

    `value` is HTTP's Retry-After, seconds or a date; `milliseconds` the header `retry-after-ms`, which is finer.
    """
    for text, per_second in ((milliseconds, 1_000.0), (value, 1.0)):
        try:
            seconds = float(text) / per_second
        except ValueError:
            continue
        if math.isfinite(seconds):
            return min(max(0.0, seconds), RETRY_AFTER_MAX_S)
    try:
        until_s = parsedate_to_datetime(value).timestamp()
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return min(max(0.0, until_s - now_s), RETRY_AFTER_MAX_S)
