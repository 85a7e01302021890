from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from broker.domain.errors import ErrorCode
from broker.domain.usage import Usage
from workers.engine import EngineError, EngineReply, EngineRequest
from workers.engines.echo import EchoEngine
from workers.engines.reply import read_reply


def _run(
    engine: EchoEngine, body: Mapping[str, object] | bytes, endpoint: str = "/v1/chat/completions", label: str = "a"
) -> EngineReply:
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return asyncio.run(engine.run(EngineRequest(label, endpoint, content)))


def _read(endpoint: str, body: bytes) -> EngineReply:
    """The reply as a client of it would read it."""
    return read_reply(EngineRequest("a", endpoint, b"{}"), 200, body)


CHAT = {"model": "m", "messages": [{"role": "user", "content": "one two three"}]}


def test_a_chat_echoes_the_last_user_message() -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": 'naïve "quotes"\nand lines'},
        {"role": "assistant", "content": "not this"},
    ]
    reply = _run(EchoEngine(), {"model": "m", "messages": messages})
    body = msgspec.json.decode(reply.body)
    assert body["choices"][0]["message"]["content"] == 'naïve "quotes"\nand lines'
    assert body["model"] == "m"
    assert reply.usage == Usage(4, 0, 4, 0)
    assert _read("/v1/chat/completions", reply.body) == reply


def test_content_in_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "left"}, {"type": "image_url", "image_url": {"url": "x"}}, {"text": "right"}]
    reply = _run(EchoEngine(), {"messages": [{"role": "user", "content": parts}]})
    assert msgspec.json.decode(reply.body)["choices"][0]["message"]["content"] == "left  right"
    assert reply.usage.output_tokens == 2


@pytest.mark.parametrize(
    ("prompt", "text"), [("a b", "a b"), (["a", "b"], "a b"), ([1, 2], "1 2"), ([[1], [2]], "1 2")]
)
def test_a_completion_echoes_its_prompt(prompt: object, text: str) -> None:
    reply = _run(EchoEngine(), {"prompt": prompt}, "/v1/completions")
    assert msgspec.json.decode(reply.body)["choices"][0]["text"] == text
    assert _read("/v1/completions", reply.body).usage == reply.usage == Usage(2, 0, 2, 0)


def test_an_embedding_has_one_vector_for_each_input() -> None:
    reply = _run(EchoEngine(), {"input": ["a b c", "d"]}, "/v1/embeddings")
    assert [item["embedding"] for item in msgspec.json.decode(reply.body)["data"]] == [[3.0, 5.0], [1.0, 1.0]]
    assert _read("/v1/embeddings", reply.body).usage == reply.usage == Usage(4)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"messages":[{"role":"user","content":7}]}', b"[" * 100_000])
def test_a_body_that_cant_be_read_is_refused(body: bytes) -> None:
    with pytest.raises(EngineError) as caught:
        _run(EchoEngine(), body)
    assert (caught.value.code, caught.value.status_code) == (ErrorCode.ENGINE_REFUSED, 400)


def test_an_unknown_endpoint_is_refused() -> None:
    with pytest.raises(EngineError) as caught:
        _run(EchoEngine(), CHAT, "/v1/images/generations")
    assert (caught.value.code, caught.value.status_code) == (ErrorCode.ENGINE_REFUSED, 404)


def test_each_call_is_logged_before_its_answer(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    log.write_text("earlier\n")

    async def three_calls() -> None:
        engine = EchoEngine(call_log=log, fail_every=2)
        await engine.start()
        content = msgspec.json.encode(CHAT)
        requests = [EngineRequest(label, "/v1/chat/completions", content) for label in ("a", "b\nc", "d")]
        await asyncio.gather(*map(engine.run, requests), return_exceptions=True)
        await engine.stop()
        await engine.stop()

    asyncio.run(three_calls())
    assert log.read_text().splitlines() == ["earlier", "a", "b c", "d"]


def test_it_misbehaves_on_the_calls_it_was_told_to() -> None:
    async def outcomes() -> list[str]:
        engine = EchoEngine(fail_every=2, status=429, garbage_every=3, hang_every=5, request_timeout_seconds=0.01)
        request, codes = EngineRequest("a", "/v1/chat/completions", msgspec.json.encode(CHAT)), []
        for _ in range(6):
            try:
                await engine.run(request)
                codes.append("ok")
            except EngineError as error:
                codes.append(error.code.value)
        return codes

    assert asyncio.run(outcomes()) == [
        "ok",
        "engine_busy",
        "engine_invalid_reply",
        "engine_busy",
        "engine_timeout",
        "engine_busy",
    ]


def test_requests_wait_out_the_delay_together() -> None:
    async def elapsed_seconds() -> float:
        engine = EchoEngine(0.05)
        request = EngineRequest("a", "/v1/chat/completions", msgspec.json.encode(CHAT))
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(engine.run(request) for _ in range(50)))
        return asyncio.get_running_loop().time() - began

    assert 0.04 < asyncio.run(elapsed_seconds()) < 0.5


def test_long_answers_take_longer() -> None:
    async def elapsed_seconds() -> float:
        engine = EchoEngine(delay_seconds_per_word=0.02)
        began = asyncio.get_running_loop().time()
        await engine.run(EngineRequest("a", "/v1/completions", b'{"model":"m","prompt":"one two three"}'))
        return asyncio.get_running_loop().time() - began

    assert 0.05 < asyncio.run(elapsed_seconds()) < 0.5
