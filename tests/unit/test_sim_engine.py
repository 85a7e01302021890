"""The benchmark's simulated server: its places, its line, its clock, and a call that is given up."""

from __future__ import annotations

import asyncio

from tests.bench.sim_engine import SimEngine
from workers.engine import EngineRequest
from workers.engines.openai_http import OpenAIHttpEngine


def ask(tokens: int) -> EngineRequest:
    return EngineRequest("a", "/v1/chat/completions", b'{"model":"m","max_tokens":%d,"messages":[]}' % tokens)


def served(engine: SimEngine, act):
    async def run():
        server = await asyncio.get_running_loop().create_server(engine.talk, "127.0.0.1", 0)
        client = OpenAIHttpEngine(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", use_proxy=False)
        async with server:
            try:
                return await act(client)
            finally:
                await client.stop()

    return asyncio.run(run())


def test_what_is_beyond_its_places_waits_in_line_and_each_answer_is_as_long_as_asked():
    engine = SimEngine(2, prompt_s=0.03, token_s=0.01)

    async def act(client):
        return await asyncio.gather(*(client.run(ask(2)) for _ in range(5)))

    replies = served(engine, act)
    assert [one.usage.output_tokens for one in replies] == [2] * 5
    assert engine.stats.calls == 5
    assert abs(engine.stats.busy_s - 5 * 0.05) < 1e-9
    assert engine.stats.makespan_s >= 3 * 0.05  # two, two, one


def test_a_call_that_is_given_up_leaves_its_place_to_the_next():
    engine = SimEngine(1, prompt_s=0.0, token_s=0.01)

    async def act(client):
        long = asyncio.create_task(client.run(ask(100_000)))
        while not engine.stats.first_s:  # noqa: ASYNC110  a poll is all this test needs
            await asyncio.sleep(0.005)
        waiting, gone = (asyncio.create_task(client.run(ask(1))) for _ in range(2))
        await asyncio.sleep(0)
        gone.cancel()
        long.cancel()
        return await waiting

    assert served(engine, act).usage.output_tokens == 1
    assert (engine.stats.calls, engine.stats.broken_off) == (1, 1)
