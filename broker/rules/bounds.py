"""What a call can have used at most, where nobody counted: by its request, and by what its engine counted before.

Tokens are bounded by the request's text, as a token is a byte or more, and by the output that it allows. The bound is
for what one can't know: a call that timed out, broke off, or was answered without usage may have been billed in full.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from broker.domain.usage import Usage

__all__ = [
    "OUTPUT_TOKENS_DEFAULT",
    "Asked",
    "TokenRatios",
    "asked_of",
    "tokens_upper",
]

OUTPUT_TOKENS_DEFAULT = 32_768
"""The most that an answer has where the call has no `max_tokens` and its lane doesn't state its `context_tokens`."""

BOUND_TOKENS_MAX = 100_000_000
"""No bound is above this: a request that asks for more is given less by any server."""

# A chat template puts a few tokens around each message, and often a text of its own before the first: that of gpt-oss
# has about 70. What a picture or a recording takes its model alone knows; 16,384 is Qwen2-VL's default limit.
_TEMPLATE_TOKENS = 96
_MESSAGE_TOKENS = 8
_MEDIA_TOKENS = 16_384
_FRAME = frozenset({"role", "content", "type", "text"})  # of messages: the template says these its own way
_MEDIA = frozenset({"image_url", "video_url", "audio_url", "input_audio", "file", "url", "file_id", "file_data"})

_SAMPLES_MIN = 16
_SAMPLE_BYTES_MIN = 256  # of less text the template is the larger part
_MARGIN = 1.25
_PROSE_SHARE_MIN = 0.9
_SPACES_SHARE_MIN = 0.08
_PROSE = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ \n.,'"


class _Request(msgspec.Struct):
    """The fields that say how much a call may use; all others are skipped, not decoded."""

    messages: Any = None
    prompt: Any = None
    input: Any = None
    tools: Any = None
    functions: Any = None
    response_format: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    n: Any = None
    best_of: Any = None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a request can use at most, as far as it says so itself.

    `text_bytes` and `is_prose` describe its text; `tokens_beside` is what it takes besides: token ids, and its pictures
    at most. `answers` is how many it asks for, of all its prompts; `output_tokens_max` is of each, 0 where it says
    none.
    """

    text_bytes: int = 0
    is_prose: bool = False
    tokens_beside: int = 0
    messages: int = 0
    prompts: int = 1
    answers: int = 1
    output_tokens_max: int = 0


_read = msgspec.json.Decoder(_Request).decode


def asked_of(endpoint: str, body: bytes) -> Asked:
    """Read from an OpenAI-shaped body; of one that can't be read, each byte counts as text."""
    try:
        request = _read(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Asked(text_bytes=len(body))
    told = _Told()
    for field in (request.messages, request.prompt, request.input, request.tools, request.functions):
        told.read(field)
    told.read(request.response_format)
    text = b"".join(told.texts)
    messages = len(request.messages) if isinstance(request.messages, list) else 0
    prompts = _prompts(request.prompt if request.prompt is not None else request.input)
    if endpoint == "/v1/embeddings":
        answers, most = 0, 0
    else:
        # All of `best_of` are generated and billed, though only `n` of them come back.
        answers = prompts * max(1, _whole(request.n), _whole(request.best_of))
        most = max(_whole(request.max_tokens), _whole(request.max_completion_tokens))
    return Asked(
        text_bytes=len(text),
        is_prose=_is_prose(text),
        tokens_beside=told.token_ids + told.media * _MEDIA_TOKENS,
        messages=messages,
        prompts=prompts,
        answers=answers,
        output_tokens_max=most,
    )


class TokenRatios:
    """How many tokens one engine has made of a request's text at most, learned from its successes.

    Prose and other text apart: code, numbers and other scripts take several times as many tokens for a byte. Until
    there are enough samples of a kind, each byte of it counts as a token.
    """

    def __init__(self) -> None:
        self._ratios = {True: 0.0, False: 0.0}  # by whether it is prose
        self._samples = {True: 0, False: 0}
        # Of chats and others: the template that the server puts around them is all of a call's tokens at most.
        self._least = {True: _TEMPLATE_TOKENS, False: _TEMPLATE_TOKENS}
        self._beyond = {True: 0, False: 0}  # tokens more than there were bytes of text, which the template alone can be

    def learn(self, asked: Asked, input_tokens: int) -> None:
        """A success stated so many input tokens. What holds pictures teaches nothing about text."""
        if asked.tokens_beside or asked.prompts > 1:
            return
        is_chat = asked.messages > 0
        self._least[is_chat] = min(self._least[is_chat], input_tokens)
        self._beyond[is_chat] = max(self._beyond[is_chat], input_tokens - asked.text_bytes)
        if asked.text_bytes >= _SAMPLE_BYTES_MIN:
            self._samples[asked.is_prose] += 1
            ratio = input_tokens / asked.text_bytes
            self._ratios[asked.is_prose] = max(self._ratios[asked.is_prose], ratio)

    def input_upper(self, asked: Asked) -> int:
        """How many input tokens such a request has at most."""
        is_chat = asked.messages > 0
        around = _MESSAGE_TOKENS * (asked.messages + asked.prompts)
        template = max(self._beyond[is_chat], self._least[is_chat])
        most = asked.text_bytes + template * asked.prompts + around
        if asked.text_bytes >= _SAMPLE_BYTES_MIN and self._samples[asked.is_prose] >= _SAMPLES_MIN:
            # The ratio has the template in it, which in more text is less of it.
            most = min(most, math.ceil(asked.text_bytes * self._ratios[asked.is_prose] * _MARGIN) + around)
        return most + asked.tokens_beside


def tokens_upper(asked: Asked, ratios: TokenRatios, context_tokens: int = 0) -> Usage:
    """The most tokens that a call can have used. `context_tokens` is the lane's, 0 where it doesn't say."""
    input_tokens = ratios.input_upper(asked)
    each = asked.output_tokens_max or context_tokens or OUTPUT_TOKENS_DEFAULT
    if context_tokens:
        input_tokens, each = min(input_tokens, context_tokens * asked.prompts), min(each, context_tokens)
    return Usage(
        input_tokens=min(input_tokens, BOUND_TOKENS_MAX),
        output_tokens=min(each * asked.answers, BOUND_TOKENS_MAX),
    )


class _Told:
    """What a model is told: the texts, ids and media in a request's fields."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.token_ids = self.media = 0

    def read(self, value: Any) -> None:  # noqa: ANN401 (JSON from outside)
        match value:
            case str():
                self._read_text(value)
            case bool() | None:
                pass
            case int() | float():
                self.token_ids += 1
            case list():
                for one in value:
                    self.read(one)
            case dict():
                for name, one in value.items():
                    if name not in _FRAME:
                        self.texts.append(name.encode("utf-8", "replace"))
                    if name in _MEDIA or (isinstance(one, dict) and not _MEDIA.isdisjoint(one)):
                        self.media += 1
                    else:
                        self.read(one)

    def _read_text(self, text: str) -> None:
        if text.startswith("data:"):
            self.media += 1
        else:
            self.texts.append(text.encode("utf-8", "replace"))


def _is_prose(text: bytes) -> bool:
    if not text:
        return False
    prose = len(text) - len(text.translate(None, _PROSE))
    return prose >= _PROSE_SHARE_MIN * len(text) and text.count(b" ") >= _SPACES_SHARE_MIN * len(text)


def _prompts(prompt: Any) -> int:  # noqa: ANN401 (JSON from outside)
    """How many there are: a list of texts, or of lists of token ids, is as many prompts."""
    is_many = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
    return len(prompt) if is_many else 1


def _whole(value: Any) -> int:  # noqa: ANN401 (JSON from outside)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and 0 < value < 2**53 else 0
