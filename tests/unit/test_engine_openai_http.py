from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from broker.domain.errors import ErrorCode
from broker.domain.usage import Usage
from workers.engine import EngineError, EngineReply, EngineRequest
from workers.engines.openai_http import OpenAIHttpEngine

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
CHAT = {
    "id": "chatcmpl-1",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}],
    "usage": USAGE,
}


class _Server:
    """A server on loopback that gives every request the same answer and keeps what it was sent."""

    def __init__(self, status: int = 200, body: bytes | None = None, headers: str = "", how: str = "whole") -> None:
        self.status, self.headers, self.how = status, headers, how
        self.body = json.dumps(CHAT).encode() if body is None else body
        self.requests: list[tuple[str, bytes]] = []
        self.running = self.running_max = self.hung_up = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                length = int(head.lower().partition("content-length:")[2].split()[0]) if head.startswith("POST") else 0
                self.requests.append((head, await reader.readexactly(length)))
                await self._answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.running += 1
        self.running_max = max(self.running_max, self.running)
        try:
            if self.how == "silent":
                self.hung_up += not await reader.read(1)
            elif self.how == "slow":
                await asyncio.sleep(0.02)
            if self.how == "dropped":
                raise ConnectionError
            head = f"HTTP/1.1 {self.status} X\r\ncontent-length: {len(self.body)}\r\n{self.headers}\r\n"
            writer.write(head.encode() + (self.body[:10] if self.how in ("cut", "stalled") else self.body))
            await writer.drain()
            if self.how == "stalled":
                await reader.read(1)
            if self.how == "cut":
                raise ConnectionError
        finally:
            self.running -= 1


def _exchange(
    server: _Server,
    *,
    body: bytes = b'{"model":"m", "messages":[]}',
    endpoint: str = "/v1/chat/completions",
    **options: object,
) -> EngineReply | EngineError:
    async def run() -> EngineReply | EngineError:
        async with await asyncio.start_server(server, "127.0.0.1", 0) as listening:
            port = listening.sockets[0].getsockname()[1]
            engine = OpenAIHttpEngine(f"http://127.0.0.1:{port}/v1/", **options)  # type: ignore[arg-type]  # a test's short cut
            try:
                await engine.start()
                try:
                    return await engine.run(EngineRequest("label-1", endpoint, body))
                except EngineError as error:
                    return error
            finally:
                await engine.stop()
                await engine.stop()

    return asyncio.run(run())


def _code(outcome: EngineReply | EngineError) -> ErrorCode:
    assert isinstance(outcome, EngineError), outcome
    return outcome.code


def test_the_body_travels_unchanged_and_the_reply_comes_back_whole() -> None:
    server = _Server(headers="x-request-id: req-9\r\n")
    reply = _exchange(server, body=b'{"model":"m",  "messages":[]}')
    assert reply == EngineReply(200, server.body, Usage(7, 0, 5, 0), "req-9")
    head, sent = server.requests[0]
    assert sent == b'{"model":"m",  "messages":[]}'
    assert head.startswith("POST /v1/chat/completions HTTP/1.1")
    assert "label-1" not in head
    assert "authorization" not in head.lower()


def test_served_model_replaces_the_model_alone() -> None:
    server = _Server()
    _exchange(server, body=b'{"model":"m","seed":12345678901234567890,"x":[1.50]}', served_model="big/one")
    assert server.requests[0][1] == b'{"model":"big/one","seed":12345678901234567890,"x":[1.50]}'
    assert _code(_exchange(server, body=b"[]", served_model="big/one")) is ErrorCode.INVALID_BODY


def test_the_key_comes_from_the_named_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_ENGINE_KEY", "sk-123")
    server = _Server()
    _exchange(server, api_key_variable="SOME_ENGINE_KEY")
    assert "authorization: bearer sk-123" in server.requests[0][0].lower()
    monkeypatch.delenv("SOME_ENGINE_KEY")
    with pytest.raises(EngineError, match="SOME_ENGINE_KEY"):
        _exchange(server, api_key_variable="SOME_ENGINE_KEY")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (302, ErrorCode.ENGINE_MOVED),
        (400, ErrorCode.ENGINE_REFUSED),
        (401, ErrorCode.ENGINE_MISCONFIGURED),
        (404, ErrorCode.ENGINE_MISCONFIGURED),
        (402, ErrorCode.ENGINE_OUT_OF_CREDIT),
        (408, ErrorCode.ENGINE_UNAVAILABLE),
        (422, ErrorCode.ENGINE_REFUSED),
        (429, ErrorCode.ENGINE_BUSY),
        (500, ErrorCode.ENGINE_FAILED),
        (502, ErrorCode.ENGINE_UNAVAILABLE),
        (503, ErrorCode.ENGINE_UNAVAILABLE),
        (504, ErrorCode.ENGINE_UNAVAILABLE),
        (529, ErrorCode.ENGINE_BUSY),
    ],
)
def test_each_status_has_its_code(status: int, code: ErrorCode) -> None:
    server = _Server(
        status, b'{"error":{"message":"no, because"}, "prompt": "secret"}', "location: /elsewhere?key=secret\r\n"
    )
    outcome = _exchange(server)
    assert isinstance(outcome, EngineError)
    assert (outcome.code, outcome.status_code, outcome.body) == (code, status, server.body)
    assert "secret" not in str(outcome)
    assert outcome.is_free == (status not in (408, 500, 502, 504))  # a refusal isn't billed; a proxy's word isn't one
    if status == 302:
        assert "127.0.0.1:" in outcome.message
        assert outcome.message.endswith("/elsewhere, which is never followed")
    else:
        assert outcome.message == f"the engine answered HTTP {status}: no, because"


def test_details_of_usage_are_read() -> None:
    usage = {
        **USAGE,
        "prompt_tokens_details": {"cached_tokens": 6},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    reply = _exchange(_Server(body=json.dumps({**CHAT, "usage": usage}).encode()))
    assert isinstance(reply, EngineReply)
    assert reply.usage == Usage(7, 6, 5, 2)
    usage = {**USAGE, "prompt_tokens_details": None, "completion_tokens_details": {"reasoning_tokens": None}}
    reply = _exchange(_Server(body=json.dumps({**CHAT, "usage": usage}).encode()))
    assert isinstance(reply, EngineReply)
    assert reply.usage == Usage(7, 0, 5, 0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"data: {}\n\n",
        b"[" * 100_000,
        json.dumps(CHAT).encode()[:-1],
        json.dumps({**CHAT, "choices": []}).encode(),
        json.dumps({**CHAT, "choices": [{"text": "secret"}]}).encode(),
        json.dumps({"choices": [*CHAT["choices"], {"message": None}]}).encode(),
    ],
)
def test_a_reply_without_what_the_endpoint_promises_is_invalid(body: bytes) -> None:
    outcome = _exchange(_Server(body=body))
    assert _code(outcome) is ErrorCode.ENGINE_INVALID_REPLY
    assert "secret" not in str(outcome)


def test_the_other_endpoints_have_promises_of_their_own() -> None:
    text = {"choices": [{"text": "hi"}], "usage": USAGE}
    vector = {"data": [{"index": 0, "embedding": [0.1, 0.2]}], "usage": {"prompt_tokens": 3, "total_tokens": 3}}
    assert isinstance(_exchange(_Server(body=json.dumps(text).encode()), endpoint="/v1/completions"), EngineReply)
    reply = _exchange(_Server(body=json.dumps(vector).encode()), endpoint="/v1/embeddings")
    assert isinstance(reply, EngineReply)
    assert reply.usage == Usage(3)
    for endpoint in ("/v1/completions", "/v1/embeddings"):
        assert _code(_exchange(_Server(), endpoint=endpoint)) is ErrorCode.ENGINE_INVALID_REPLY
    assert _code(_exchange(_Server(), endpoint="/../admin")) is ErrorCode.INVALID_URL


@pytest.mark.parametrize("how", ["dropped", "cut"])
def test_a_cut_connection_is_the_engines_failure(how: str) -> None:
    outcome = _exchange(_Server(how=how))
    assert isinstance(outcome, EngineError)
    assert (outcome.code, outcome.is_free) == (ErrorCode.ENGINE_FAILED, False)


@pytest.mark.parametrize("how", ["silent", "stalled"])
def test_the_time_limit_spans_the_whole_answer(how: str) -> None:
    outcome = _exchange(_Server(how=how), request_timeout_seconds=0.1)
    assert isinstance(outcome, EngineError)
    assert (outcome.code, outcome.is_free) == (ErrorCode.ENGINE_TIMEOUT, False)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ("retry-after: 7\r\n", 7.0),
        ("retry-after: 7\r\nretry-after-ms: 1500\r\n", 1.5),
        ("retry-after: soon\r\n", 0.0),
        ("", 0.0),
    ],
)
@pytest.mark.parametrize("status", [400, 429, 503])
def test_how_long_to_wait_is_read_of_every_refusal(status: int, headers: str, expected: float) -> None:
    outcome = _exchange(_Server(status, b"{}", headers))
    assert isinstance(outcome, EngineError)
    assert outcome.retry_after_s == expected


def test_an_oversized_reply_is_cut_off() -> None:
    assert _code(_exchange(_Server(body=b" " * 300_000), reply_bytes_max=200_000)) is ErrorCode.REPLY_TOO_LARGE
    outcome = _exchange(_Server(500, b" " * 1_000_001))
    assert isinstance(outcome, EngineError)
    assert (outcome.code, outcome.body) == (ErrorCode.ENGINE_FAILED, b"")


def test_nobody_listening_is_unreachable() -> None:
    async def run(health_path: str) -> None:
        engine = OpenAIHttpEngine("http://127.0.0.1:9", health_path=health_path)
        try:
            await engine.start()
            await engine.run(EngineRequest("a", "/v1/chat/completions", b"{}"))
        finally:
            await engine.stop()

    for health_path in ("", "/health"):
        with pytest.raises(EngineError) as caught:
            asyncio.run(run(health_path))
        assert (caught.value.code, caught.value.is_free) == (ErrorCode.ENGINE_UNREACHABLE, True)


def test_a_failing_health_check_refuses_the_start() -> None:
    with pytest.raises(EngineError, match="HTTP 503"):
        _exchange(_Server(503), health_path="/health")


def test_no_more_than_concurrency_requests_are_under_way() -> None:
    async def run() -> int:
        server = _Server(how="slow")
        async with await asyncio.start_server(server, "127.0.0.1", 0) as listening:
            engine = OpenAIHttpEngine(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", concurrency=3)
            request = EngineRequest("a", "/v1/chat/completions", b"{}")
            await asyncio.gather(*(engine.run(request) for _ in range(9)))
            await engine.stop()
        return server.running_max

    assert asyncio.run(run()) == 3


def test_cancelling_hangs_up_on_the_engine() -> None:
    async def run() -> int:
        server = _Server(how="silent")
        async with await asyncio.start_server(server, "127.0.0.1", 0) as listening:
            engine = OpenAIHttpEngine(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
            task = asyncio.create_task(engine.run(EngineRequest("a", "/v1/chat/completions", b"{}")))
            while not server.running:  # noqa: ASYNC110  a poll is all this test needs
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while server.running:  # noqa: ASYNC110  a poll is all this test needs
                await asyncio.sleep(0.005)
            await engine.stop()
        return server.hung_up

    assert asyncio.run(asyncio.wait_for(run(), 2)) == 1
