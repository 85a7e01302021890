"""Calls to an engine at a raw server, for the tests of the engine's HTTP client."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from broker.domain.errors import ErrorCode
from workers.engine import EngineError, EngineReply, EngineRequest
from workers.engines.openai_http import OpenAIHttpEngine

__all__ = ["CALL", "HANG_UP_S", "LARGE", "always", "outcome_of", "run_one_after_another", "told", "with_engine"]

CALL = EngineRequest("label-1", "/v1/chat/completions", b'{"model":"m","messages":[]}')
LARGE = EngineRequest("label-1", "/v1/chat/completions", b'{"model":"m","messages":["%b"]}' % (b"x" * 20_000_000))
HANG_UP_S = 2.0


def with_engine(server, act: Callable[[OpenAIHttpEngine], Awaitable], use_proxy=False, **options):
    """What `act` gives; `server` is one, or its address."""

    async def run():
        engine = OpenAIHttpEngine(server if isinstance(server, str) else server.url, use_proxy=use_proxy, **options)
        try:
            await engine.start()
            return await act(engine)
        finally:
            await engine.stop()

    return asyncio.run(run())


def outcome_of(server, request=CALL, **options) -> EngineReply | EngineError:
    async def act(engine):
        try:
            return await engine.run(request)
        except EngineError as error:
            return error

    return with_engine(server, act, **options)


def told(outcome: EngineReply | EngineError) -> tuple[ErrorCode, bool]:
    """The code of an error and whether it was free."""
    assert isinstance(outcome, EngineError), outcome
    return outcome.code, outcome.is_free


def always(data: bytes):
    """A connection that answers each request with these bytes."""

    def converse(connection):
        while connection.read():
            connection.send(data)

    return converse


async def run_one_after_another(engine, count: int) -> list[EngineReply]:
    return [await engine.run(CALL) for _ in range(count)]
