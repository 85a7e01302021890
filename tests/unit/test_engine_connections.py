"""Servers that close their connections unsaid, one beside another: no request fails of it, none is sent twice."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from workers.engine import EngineRequest
from workers.engines.openai_http import OpenAIHttpEngine

ENDPOINT = "/v1/chat/completions"
REPLY = json.dumps(
    {
        "choices": [{"message": {"role": "assistant", "content": "hi"}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    }
).encode()


class Closing:
    """Closes a connection after an answer, or once nothing came over it for so long; it doesn't say so beforehand."""

    def __init__(self, idle_s: float) -> None:
        self.idle_s = idle_s
        self.calls = self.connections = 0

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), self.idle_s or 10)
                length = re.search(rb"content-length: *(\d+)", head.lower())
                await reader.readexactly(int(length[1]) if length else 0)
                self.calls += 1
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(REPLY), REPLY))
                await writer.drain()
                if not self.idle_s:
                    break
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()


async def _ask(server: Closing, pauses: list[float]) -> None:
    listening = await asyncio.start_server(server.converse, "127.0.0.1", 0)
    engine = OpenAIHttpEngine(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", use_proxy=False)
    await engine.start()
    try:
        for pause_s in pauses:
            reply = await engine.run(EngineRequest("job", ENDPOINT, b'{"model":"m","messages":[]}'))
            assert reply.usage.input_tokens == 3
            await asyncio.sleep(pause_s)
    finally:
        await engine.stop()
        listening.close()


@pytest.mark.parametrize(
    ("idle_s", "pauses", "connections"),
    [
        (0.0, [0.02] * 10, 10),  # after each answer
        (0.05, [0.15] * 5, 5),  # always before the next one
        (5.0, [0.0] * 20, 1),  # never, as far as is seen
    ],
)
def test_a_connection_that_was_closed_costs_no_request(idle_s, pauses, connections):
    closing, other = Closing(idle_s), Closing(5.0)

    async def both() -> None:
        await asyncio.gather(_ask(closing, pauses), _ask(other, [0.01] * 10))

    asyncio.run(both())
    assert (closing.calls, closing.connections) == (len(pauses), connections)
    assert (other.calls, other.connections) == (10, 1)
