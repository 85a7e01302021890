"""Answers by repeating the question: the engine of tests and benchmarks, which can also misbehave on request."""

from __future__ import annotations

import asyncio
from itertools import count
from pathlib import Path

import msgspec

from broker.domain.errors import ErrorCode
from broker.domain.usage import Usage
from workers.engine import EngineError, EngineReply, EngineRequest
from workers.engines.calls import CallLog
from workers.engines.reply import refusal

__all__ = ["EchoEngine"]

_GARBAGE = b'{"choices": [nonsense'


class _Message(msgspec.Struct):
    role: str = ""
    content: msgspec.Raw = msgspec.Raw(b'""')


class _Request(msgspec.Struct):
    """The fields that an echo needs; everything else of the body is skipped, not decoded."""

    model: str = "echo"
    messages: list[_Message] = []
    prompt: msgspec.Raw = msgspec.Raw(b'""')
    input: msgspec.Raw = msgspec.Raw(b'""')


class _Part(msgspec.Struct):
    text: str = ""


_read_request = msgspec.json.Decoder(_Request).decode
_read_text = msgspec.json.Decoder(str | list[str | _Part | int | list[int]] | None).decode
_quoted = msgspec.json.Encoder().encode


class EchoEngine:
    """Answers every request with its last user text (`messages`), prompt or input.

    Tokens are words: runs of characters between white space. Input tokens are the words of the echoed text
    alone, not of earlier messages; output tokens are the words of the answer, which is that text again.
    An embedding is the two numbers [words, characters] of each input.

    `delay_seconds` is waited before each answer, or what the file `delay_file` says by then; and, since long answers
    take longer, `delay_seconds_per_word` for each word of it. `call_log` names a `CallLog`, written before anything
    else.

    To misbehave, counted over this engine's calls from 1 (0 is never; the first that applies wins):
    every `fail_every`-th call fails as a server's HTTP `status` would; every `garbage_every`-th fails as an
    answer that isn't JSON; every `hang_every`-th stays silent for `request_timeout_seconds`, then times out.
    """

    def __init__(
        self,
        delay_seconds: float = 0.0,
        call_log: Path | None = None,
        *,
        delay_seconds_per_word: float = 0.0,
        delay_file: Path | None = None,
        fail_every: int = 0,
        status: int = 500,
        garbage_every: int = 0,
        hang_every: int = 0,
        request_timeout_seconds: float = 300.0,
    ) -> None:
        self._delay_seconds = delay_seconds
        self._delay_seconds_per_word = delay_seconds_per_word
        self._delay_file = delay_file
        self._call_log = CallLog(call_log)
        self._fail_every = fail_every
        self._status = status
        self._garbage_every = garbage_every
        self._hang_every = hang_every
        self._request_timeout_seconds = request_timeout_seconds
        self._misbehaves = bool(fail_every or garbage_every or hang_every)
        self._calls = count(1)

    async def start(self) -> None:
        self._call_log.open()

    async def run(self, request: EngineRequest) -> EngineReply:
        self._call_log.append(request.label)
        if self._misbehaves:
            await self._misbehave(next(self._calls))
        answer = _answer(request)
        delay_seconds = self._delay_seconds if self._delay_file is None else _read_delay(self._delay_file)
        delay_seconds += self._delay_seconds_per_word * answer.usage.output_tokens
        if delay_seconds > 0:
            await asyncio.sleep(delay_seconds)
        return answer

    async def stop(self) -> None:
        self._call_log.close()

    async def _misbehave(self, call: int) -> None:
        if self._fail_every and call % self._fail_every == 0:
            body = b'{"error":{"message":"the echo engine was told to fail","type":"server_error"}}'
            raise refusal(self._status, body)
        if self._garbage_every and call % self._garbage_every == 0:
            raise EngineError(
                ErrorCode.ENGINE_INVALID_REPLY, "the engine's reply is not JSON", status_code=200, body=_GARBAGE
            )
        if self._hang_every and call % self._hang_every == 0:
            await asyncio.sleep(self._request_timeout_seconds)
            raise EngineError(
                ErrorCode.ENGINE_TIMEOUT, f"the engine gave no answer within {self._request_timeout_seconds:g} s"
            )


def _read_delay(path: Path) -> float:
    """Read anew for each call, so that a test can slow an engine down while it works."""
    return float(path.read_text())


def _answer(request: EngineRequest) -> EngineReply:
    try:
        asked = _read_request(request.body)
        match request.endpoint:
            case "/v1/chat/completions":
                return _text_answer(request.label, asked.model, _CHAT, _last_user_content(asked.messages))
            case "/v1/completions":
                return _text_answer(request.label, asked.model, _COMPLETION, asked.prompt)
            case "/v1/embeddings":
                return _embedding_answer(request.label, asked.model, asked.input)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        message = "the echo engine can't read this body"
        raise EngineError(ErrorCode.ENGINE_REFUSED, message, status_code=400, is_free=True) from None
    message = f"no such endpoint: {request.endpoint}"
    raise EngineError(ErrorCode.ENGINE_REFUSED, message, status_code=404, is_free=True)


# The answers are put together from bytes: half the price of encoding a struct tree, and the text passes through
# as the JSON string that it already is.
_CHAT = (
    b'"object":"chat.completion","choices":[{"index":0,"finish_reason":"stop","logprobs":null,'
    b'"message":{"role":"assistant","refusal":null,"content":%b}}]'
)
_COMPLETION = b'"object":"text_completion","choices":[{"index":0,"finish_reason":"stop","logprobs":null,"text":%b}]'
_ENVELOPE = b'{"id":%b,"created":0,"model":%b,%b,"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}'


def _last_user_content(messages: list[_Message]) -> msgspec.Raw:
    for message in reversed(messages):
        if message.role == "user":
            return message.content
    return msgspec.Raw(b'""')


def _text_answer(label: str, model: str, form: bytes, raw: msgspec.Raw) -> EngineReply:
    text = _text_of(raw)
    words = len(text.split())
    encoded = bytes(raw)
    quoted = encoded if encoded.startswith(b'"') else _quoted(text)
    body = _ENVELOPE % (_quoted(label), _quoted(model), form % quoted, words, words, 2 * words)
    return EngineReply(200, body, Usage(words, 0, words, 0), label)


def _text_of(raw: msgspec.Raw) -> str:
    content = _read_text(raw)
    if isinstance(content, str):
        return content
    return " ".join(_piece(piece) for piece in content or [])


def _piece(piece: str | _Part | int | list[int]) -> str:
    match piece:
        case str():
            return piece
        case _Part():
            return piece.text
        case int():
            return str(piece)
        case _:
            return " ".join(map(str, piece))


def _embedding_answer(label: str, model: str, raw: msgspec.Raw) -> EngineReply:
    content = _read_text(raw)
    inputs = [content] if isinstance(content, str) else [_piece(piece) for piece in content or []]
    words = [len(text.split()) for text in inputs]
    tokens = sum(words)
    body = msgspec.json.encode(
        {
            "object": "list",
            "model": model,
            "data": [
                {"object": "embedding", "index": index, "embedding": [float(size), float(len(text))]}
                for index, (size, text) in enumerate(zip(words, inputs, strict=True))
            ],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )
    return EngineReply(200, body, Usage(tokens), label)
