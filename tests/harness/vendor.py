"""A vendor that is paid by the token, with a bill of its own, and every oddity that such servers were seen to have.

It speaks HTTP over a socket. What it does to a call is said in the call's `user` field, as `ODDITY:NUMBER`, or
`ODDITY once:NUMBER` where it is well when asked again. By that it bills, in nano-USD, whatever it answered: a call that
timed out, broke off or was cancelled was worked on.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from fractions import Fraction
from typing import Any

import msgspec

__all__ = ["ODDITIES", "Call", "Vendor", "tokens_of"]

INPUT_USD, CACHED_USD, OUTPUT_USD = Fraction("0.5"), Fraction("0.05"), Fraction(4)
"""For a million tokens."""

_ONCE = " once"
_TEMPLATE_TOKENS, _MESSAGE_TOKENS = 31, 4
_PIECES = re.compile(r"[ ]?[A-Za-z]{1,6}|[0-9]{1,3}|\s+|[^\sA-Za-z0-9]")


def tokens_of(text: str) -> int:
    """About as real tokenizers do: some letters at a time, three digits, and no more than a token for a byte."""
    return sum(min(3, len(one.encode())) if ord(one[0]) > 0xFFFF else 1 for one in _PIECES.findall(text))


class Call(msgspec.Struct):
    """What a call truly used; and what the server then says and does."""

    number: int
    inputs: int
    outputs: list[int]
    cached: int
    reasoning: int
    is_free: bool = False
    share: Fraction = Fraction(1)  # of the output that was made before it was stopped
    status: int = 200
    headers: str = ""
    usage: Any = None
    reply: Any = None  # instead of an answer
    raw: bytes = b""  # the reply's bytes, instead of those
    how: str = "whole"

    @property
    def output(self) -> int:
        return sum(self.outputs)

    @property
    def bill_nano_usd(self) -> int:
        if self.is_free:
            return 0
        output = int(self.output * self.share)
        usd = (self.inputs - self.cached) * INPUT_USD + self.cached * CACHED_USD + output * OUTPUT_USD
        return round(usd * 1_000)  # dollars for a million are nano-dollars for a thousandth


def _plainly(call: Call, **changes: Any) -> dict[str, Any]:
    usage = {
        "prompt_tokens": call.inputs,
        "completion_tokens": call.output,
        "total_tokens": call.inputs + call.output,
        "prompt_tokens_details": {"cached_tokens": call.cached},
        "completion_tokens_details": {"reasoning_tokens": call.reasoning},
    }
    usage |= changes
    return {name: value for name, value in usage.items() if value != "gone"}


def _stating(**made: Callable[[Call], Any]) -> Callable[[Call], None]:
    """An answer with usage in which these fields are made otherwise."""

    def odd(call: Call) -> None:
        call.usage = _plainly(call, **{name: make(call) for name, make in made.items()})

    return odd


def _gone(_call: Call) -> str:
    return "gone"


def _doing(**changes: Any) -> Callable[[Call], None]:
    def odd(call: Call) -> None:
        call.usage = _plainly(call)
        for name, value in changes.items():
            setattr(call, name, value(call) if callable(value) else value)

    return odd


def _unstated(**changes: Any) -> Callable[[Call], None]:
    return _doing(usage=None, **changes)


def _thinks(call: Call) -> None:
    """Thoughts take most of the output."""
    call.reasoning = call.output * 3 // 4


def _beside(total: bool) -> Callable[[Call], None]:
    def odd(call: Call) -> None:
        _thinks(call)
        said = call.output - call.reasoning
        call.usage = _plainly(call, completion_tokens=said, **({} if total else {"total_tokens": "gone"}))

    return odd


def _hidden(call: Call) -> None:
    _thinks(call)
    call.usage = _plainly(call, completion_tokens=call.output - call.reasoning, completion_tokens_details="gone")


def _cached_beside(total: bool) -> Callable[[Call], None]:
    def odd(call: Call) -> None:
        call.cached = call.inputs * 9 // 10
        said = call.inputs - call.cached
        call.usage = _plainly(call, prompt_tokens=said, **({} if total else {"total_tokens": "gone"}))

    return odd


def _cached_within(call: Call) -> None:
    call.cached = call.inputs * 9 // 10
    call.usage = _plainly(call)


def _thinking_within(call: Call) -> None:
    _thinks(call)
    call.usage = _plainly(call)


def _counting_one(call: Call) -> None:
    call.usage = _plainly(call, completion_tokens=call.outputs[0], total_tokens=call.inputs + call.outputs[0])


_SAID = {"error": {"message": "it broke"}}
ODDITIES: dict[str, Callable[[Call], None]] = {
    "plain": _stating(),
    "no total": _stating(total_tokens=_gone),
    "total of 0": _stating(total_tokens=lambda _: 0),
    "no details": _stating(prompt_tokens_details=_gone, completion_tokens_details=lambda _: None),
    "floats": _stating(
        prompt_tokens=lambda call: float(call.inputs), completion_tokens=lambda call: float(call.output)
    ),
    "texts": _stating(prompt_tokens=lambda call: str(call.inputs), total_tokens=_gone),
    "no usage": _unstated(),
    "null usage": _doing(usage=lambda _: "null"),
    "null completion": _stating(completion_tokens=lambda _: None),
    "null completion, no total": _stating(completion_tokens=lambda _: None, total_tokens=_gone),
    "negative prompt": _stating(prompt_tokens=lambda _: -1),
    "negative prompt, no total": _stating(prompt_tokens=lambda _: -1, total_tokens=_gone),
    "no prompt, no total": _stating(prompt_tokens=_gone, total_tokens=_gone),
    "overflow": _stating(completion_tokens=lambda _: 2**32 - 1),
    "too much": _stating(completion_tokens=lambda _: 50_000_000, total_tokens=_gone),
    "too long": _stating(prompt_tokens=lambda _: 99_000_000, total_tokens=_gone),
    "cached": _cached_within,
    "cached beside": _cached_beside(total=True),
    "cached beside, no total": _cached_beside(total=False),
    "thinking": _thinking_within,
    "thinking beside": _beside(total=True),
    "thinking beside, no total": _beside(total=False),
    "thinking hidden": _hidden,
    "one counted": _counting_one,
    "number for an id": _doing(raw=lambda call: _answered(call).replace(b'"id": "chatcmpl-1"', b'"id": 12345')),
    "byte order mark": _doing(raw=lambda call: b"\xef\xbb\xbf" + _answered(call)),
    "half a character": _doing(raw=lambda call: _answered(call).replace(b"so be it", rb"so \ud83d")),
    "NaN": _doing(raw=lambda call: _answered(call).replace(b"null", b"NaN")),
    "400": _unstated(status=400, is_free=True, reply=_SAID),
    "404": _unstated(status=404, is_free=True, reply=_SAID),
    "308": _unstated(status=308, is_free=True, headers="location: https://elsewhere.example/v1\r\n"),
    "429": _unstated(status=429, is_free=True, reply=_SAID, headers="retry-after: 1\r\n"),
    "503": _unstated(status=503, is_free=True, reply=_SAID),
    "529": _unstated(status=529, is_free=True, reply=_SAID),
    "filtered": _unstated(status=400, share=Fraction(0), reply={"error": {"message": "no", "code": "content_filter"}}),
    "500": _unstated(status=500, is_free=True, reply=_SAID),
    "500, billed": _unstated(status=500, reply=_SAID),
    "500, stated": _doing(status=500, reply=_SAID),
    "502": _unstated(status=502, raw=b"<html>"),
    "504": _unstated(status=504, raw=b"<html>"),
    "error in a 200": _unstated(is_free=True, reply={"error": {"message": "later", "code": 429}}),
    "error in a 200, billed": _doing(reply=_SAID),
    "empty choices": _doing(reply={"choices": []}),
    "empty choices, unstated": _unstated(reply={"choices": []}),
    "no JSON": _unstated(raw=b'{"choices": [nonsense'),
    "cut": _doing(how="cut"),
    "dropped": _doing(how="dropped"),
    "silent": _doing(how="silent"),
    "hung up on": _doing(how="silent", share=lambda call: Fraction(9 - call.number % 4, 10)),
}


def _answered(call: Call) -> bytes:
    """The bytes of an answer."""
    answers = [
        {"index": index, "message": {"role": "assistant", "content": "so be it"}, "text": "so be it", "logprobs": None}
        for index in range(len(call.outputs))
    ]
    reply: dict[str, Any] = {"id": "chatcmpl-1", "choices": answers} if call.reply is None else dict(call.reply)
    if call.usage is not None:
        reply["usage"] = None if call.usage == "null" else call.usage
    return json.dumps(reply).encode()


class Vendor:
    """The server and its bill. Answers are as long as the request allows, or up to a third shorter."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.bills: dict[str, int] = {}
        """In nano-USD, of each call that it had, by the `user` of its request."""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Listens until left; the address."""
        server = await asyncio.start_server(self._converse, "127.0.0.1", 0, limit=2**22)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Cancelled when the test's loop ends, which isn't worth a word.
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(re.search(rb"content-length: *(\d+)", head.lower())[1])  # type: ignore[index]  # our client's
                call = self._taken(json.loads(await reader.readexactly(length)))
                if not await self._answer(call, reader, writer):
                    break
        writer.close()

    def _taken(self, asked: dict[str, Any]) -> Call:
        """The call, and its line of the bill."""
        oddity, _, number = asked["user"].rpartition(":")
        if oddity.endswith(_ONCE):
            oddity = "plain" if asked["user"] in self.bills else oddity.removesuffix(_ONCE)
        prompts = asked.get("prompt")
        texts = prompts if isinstance(prompts, list) else [prompts or ""]
        inputs = sum(map(tokens_of, texts))
        if messages := asked.get("messages"):
            inputs = _TEMPLATE_TOKENS + sum(_MESSAGE_TOKENS + tokens_of(one["content"]) for one in messages)
        most = asked.get("max_completion_tokens") or asked["max_tokens"]
        outputs = [
            most if self._random.random() < 0.6 else self._random.randint(most * 2 // 3, most)
            for _ in range(len(texts) * asked.get("n", 1))
        ]
        call = Call(int(number), inputs, outputs, 0, 0)
        ODDITIES[oddity](call)
        # It may be asked again, and bills again.
        self.bills[asked["user"]] = self.bills.get(asked["user"], 0) + call.bill_nano_usd
        return call

    async def _answer(self, call: Call, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        body = call.raw or _answered(call)
        if call.how == "silent":
            await reader.read(1)
            return False
        if call.how == "dropped":
            return False
        head = f"HTTP/1.1 {call.status} X\r\ncontent-length: {len(body)}\r\n{call.headers}\r\n"
        writer.write(head.encode() + (body[: len(body) // 2] if call.how == "cut" else body))
        await writer.drain()
        return call.how != "cut"
