"""A simulated server with continuous batching: so many places, a time for the prompt and one for each token, a line.

    python -m tests.bench.sim_engine PORT PLACES PROMPT_SECONDS TOKEN_SECONDS

It speaks OpenAI's HTTP interface, answers with exactly `max_tokens` tokens, and keeps its own clock: GET /stats tells
how many calls it served, the seconds its places were taken, and when the first began and the last ended. Its time per
token doesn't grow with load. A call whose connection ends gives its place back.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque

import msgspec

__all__ = ["SimEngine", "Stats"]


class Stats(msgspec.Struct):
    """Seconds are by the engine's monotonic clock."""

    calls: int = 0
    broken_off: int = 0
    busy_s: float = 0.0
    first_s: float = 0.0
    last_s: float = 0.0

    @property
    def makespan_s(self) -> float:
        """From the first call's beginning to the last one's end."""
        return self.last_s - self.first_s


class _Asked(msgspec.Struct):
    max_tokens: int = 16


class SimEngine:
    """Its places and the line before them."""

    def __init__(self, places: int, prompt_s: float, token_s: float) -> None:
        self.prompt_s, self.token_s = prompt_s, token_s
        self.stats = Stats()
        self._free = places
        self._line: deque[tuple[_Talk, int]] = deque()

    def talk(self) -> asyncio.Protocol:
        """One more connection."""
        return _Talk(self)

    def submit(self, talk: _Talk, tokens: int) -> None:
        """Begin, or wait in line."""
        self._line.append((talk, tokens))
        self._fill()

    def _fill(self) -> None:
        while self._free and self._line:
            talk, tokens = self._line.popleft()
            if talk.is_over:
                continue
            self._free -= 1
            now_s = time.monotonic()
            self.stats.first_s = self.stats.first_s or now_s
            seconds = self.prompt_s + tokens * self.token_s
            talk.running = asyncio.get_running_loop().call_later(seconds, self._end, talk, tokens, now_s)

    def _end(self, talk: _Talk, tokens: int, began_s: float) -> None:
        talk.running = None
        now_s = time.monotonic()
        self.stats.calls += 1
        self.stats.busy_s += self.prompt_s + tokens * self.token_s
        self.stats.last_s = now_s
        self._free += 1
        talk.answer(_answer(tokens))
        self._fill()

    def break_off(self, talk: _Talk) -> None:
        """Its connection has ended."""
        if talk.running:
            talk.running.cancel()
            self.stats.broken_off += 1
            self._free += 1
            self._fill()


class _Talk(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, engine: SimEngine) -> None:
        self._engine = engine
        self._data = b""
        self._transport: asyncio.Transport
        self.running: asyncio.TimerHandle | None = None
        self.is_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        self.is_over = True
        self._engine.break_off(self)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, blank, rest = self._data.partition(b"\r\n\r\n")
        if not blank:
            return
        head = head.lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0]) if b"content-length:" in head else 0
        if len(rest) < length:
            return
        self._data = b""
        if head.startswith(b"post"):
            self._engine.submit(self, msgspec.json.decode(rest, type=_Asked).max_tokens)
        else:
            self.answer(msgspec.json.encode(self._engine.stats))

    def answer(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        self._transport.write(head + body)


def _answer(tokens: int) -> bytes:
    return msgspec.json.encode(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": "word " * tokens}, "finish_reason": "stop"}
            ],
            "usage": {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens},
        }
    )


async def _serve(port: int, engine: SimEngine) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(engine.talk, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), SimEngine(int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))))
