"""The engine's HTTP client over raw sockets: when a connection is used again, when it is closed, and odd replies."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest

from broker.domain.errors import ErrorCode
from tests.harness.certificates import Certificates
from tests.harness.raw_server import CHAT, RawServer, reply
from workers.engine import EngineError, EngineReply, EngineRequest
from workers.engines import connections
from workers.engines.openai_http import OpenAIHttpEngine

CALL = EngineRequest("label-1", "/v1/chat/completions", b'{"model":"m","messages":[]}')
LARGE = EngineRequest("label-1", "/v1/chat/completions", b'{"model":"m","messages":["%b"]}' % (b"x" * 20_000_000))
HANG_UP_S = 2.0


@pytest.fixture(autouse=True)
def _no_proxies_of_this_machine(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def with_engine(server, act: Callable[[OpenAIHttpEngine], Awaitable], **options):
    """What `act` gives; `server` is one, or its address."""

    async def run():
        engine = OpenAIHttpEngine(server if isinstance(server, str) else server.url, **options)
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


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def run_one_after_another(engine, count: int) -> list[EngineReply]:
    return [await engine.run(CALL) for _ in range(count)]


# ------------------------------------------------------------------------------------------ connections used again


def test_calls_one_after_another_share_one_connection():
    with RawServer(always(reply())) as server:
        replies = with_engine(server, lambda engine: run_one_after_another(engine, 20))
        assert [one.status_code for one in replies] == [200] * 20
        assert len(server.connections) == 1


def test_as_many_connections_as_calls_at_once_and_no_more():
    gate = threading.Barrier(4)

    def converse(connection):
        while connection.read():
            gate.wait(10)
            connection.send(reply())

    async def act(engine):
        return await asyncio.gather(*(engine.run(CALL) for _ in range(40)))

    with RawServer(converse) as server:
        assert len(with_engine(server, act, concurrency=4)) == 40
        assert len(server.connections) == 4


def test_a_server_that_closes_after_each_reply_gets_every_request_once():
    async def act(engine):
        async def work():
            return await run_one_after_another(engine, 30)

        await asyncio.gather(work(), work())

    with RawServer(lambda connection: (connection.read(), connection.send_and_close(reply()))) as server:
        with_engine(server, act, concurrency=2)
        assert (len(server.requests), len(server.connections)) == (60, 60)


@pytest.mark.parametrize("is_busy", [True, False])
def test_an_idle_connection_that_the_server_has_closed_is_not_used(is_busy):
    closed = threading.Event()

    def converse(connection):
        connection.read()
        connection.send(reply())
        if connection.number == 0:
            connection.socket.close()
            closed.set()
        else:
            connection.wait_for_end()

    async def act(engine):
        await engine.run(CALL)
        if is_busy:
            assert closed.wait(10)  # the loop, which this holds, has seen nothing of it
        else:
            assert await asyncio.to_thread(closed.wait, 10)
        return await engine.run(CALL)

    with RawServer(converse) as server:
        assert with_engine(server, act).status_code == 200
        assert len(server.requests) == 2


@pytest.mark.parametrize("cut", [b"", b"HTTP/1.1 200 X\r\ncont"])
def test_a_request_that_breaks_on_a_kept_connection_is_never_sent_again(cut):
    def converse(connection):
        connection.read()
        connection.send(reply())
        connection.read()
        connection.send_and_close(cut)

    async def act(engine):
        await engine.run(CALL)
        try:
            return await engine.run(CALL)
        except EngineError as error:
            return error

    with RawServer(converse) as server:
        assert told(with_engine(server, act)) == (ErrorCode.ENGINE_FAILED, False)
        assert (len(server.requests), len(server.connections)) == (2, 1)


def test_an_idle_connection_is_closed_before_the_server_would(monkeypatch):
    assert connections._KEEP_ALIVE_SECONDS < 5
    monkeypatch.setattr(connections, "_KEEP_ALIVE_SECONDS", 0.05)

    def converse(connection):
        connection.read()
        connection.send(reply())
        connection.wait_for_end()

    async def act(engine):
        await engine.run(CALL)
        assert await asyncio.to_thread(server.hung_up.wait, HANG_UP_S)
        await engine.run(CALL)

    with RawServer(converse) as server:
        with_engine(server, act)
        assert len(server.connections) == 2


@pytest.mark.parametrize("headers", ["connection: close\r\n", "set-cookie: who=tenant-1; Path=/\r\n"])
def test_nothing_of_one_call_goes_into_the_next(headers):
    with RawServer(always(reply(headers=headers))) as server:
        with_engine(server, lambda engine: run_one_after_another(engine, 2))
        assert len(server.connections) == (2 if "close" in headers else 1)
        assert "cookie" not in server.requests[1].head


# ------------------------------------------------------------------------------------------ connections given up


def read_all_and_be_silent(connection):
    connection.read()
    connection.wait_for_end()


def answer_half(connection):
    connection.read()
    connection.send(reply()[:-10])
    connection.wait_for_end()


SLOW = [(read_all_and_be_silent, CALL), (answer_half, CALL), (read_all_and_be_silent, LARGE)]


@pytest.mark.parametrize("is_tls", [False, True])
@pytest.mark.parametrize(("converse", "request_"), SLOW)
def test_a_call_that_times_out_closes_its_connection_at_once(converse, request_, is_tls, tmp_path, monkeypatch):
    certificates = Certificates(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.trusted_file))
    with RawServer(converse, certificates.trusted if is_tls else None) as server:

        async def act(engine):
            with pytest.raises(EngineError) as caught:
                await engine.run(request_)
            assert await asyncio.to_thread(server.hung_up.wait, HANG_UP_S)
            return caught.value

        assert told(with_engine(server, act, request_timeout_seconds=0.3)) == (ErrorCode.ENGINE_TIMEOUT, False)


def test_a_cancelled_call_closes_its_connection_though_nobody_reads_what_is_left_of_it():
    begun, cancelled, seen = threading.Event(), threading.Event(), []

    def converse(connection):
        connection.read_head()
        begun.set()
        cancelled.wait(10)
        while more := connection.socket.recv(1_000_000):
            seen.append(len(more))
        connection.wait_for_end()

    async def act(engine):
        task = asyncio.create_task(engine.run(LARGE))
        assert await asyncio.to_thread(begun.wait, 10)
        (sending,) = engine._session.connector._acquired
        while not sending.transport.get_write_buffer_size():  # noqa: ASYNC110  a poll is all this test needs
            await asyncio.sleep(0.005)
        before = open_files()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.01)  # the loop's next round is what closes
        assert open_files() == before - 1
        cancelled.set()
        assert await asyncio.to_thread(server.hung_up.wait, HANG_UP_S)

    with RawServer(converse) as server:
        with_engine(server, act)
        assert sum(seen) < len(LARGE.body)  # what was in the buffers, and none of the rest


def test_a_cancelled_call_leaves_the_others_their_connections():
    def converse(connection):
        while request := connection.read():
            if b"stuck" in request.body:
                connection.wait_for_end()
            else:
                connection.send(reply())

    async def act(engine):
        stuck = asyncio.create_task(engine.run(EngineRequest("b", CALL.endpoint, b'{"stuck":1}')))
        await engine.run(CALL)
        stuck.cancel()
        assert await asyncio.to_thread(server.hung_up.wait, HANG_UP_S)
        await run_one_after_another(engine, 3)

    with RawServer(converse) as server:
        with_engine(server, act, concurrency=2)
        assert len(server.connections) == 2


# -------------------------------------------------------------------------------------------------- odd replies


def chunked(*chunks: bytes, headers: str = "", end: bytes = b"0\r\n\r\n") -> bytes:
    head = f"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n{headers}\r\n".encode()
    return head + b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in chunks) + end


LONG = f"x-policy: {'p' * 70_000}\r\n"
GOOD = {
    "blank chunks before the JSON": chunked(b" ", b"\n", b"  \n", CHAT),
    "blank lines before the JSON": reply(b"\r\n" * 500 + CHAT),
    "one byte a chunk": chunked(*(bytes([one]) for one in CHAT)),
    "chunk extensions and trailers": chunked(CHAT, end=b"0;x=1\r\nx-sum: 1\r\n\r\n"),
    "a header line of 9 KB": reply(headers=LONG[:9_000] + "\r\n"),
    "a header line of 70 KB": reply(headers=LONG),
    "200 header lines": reply(headers="".join(f"x-{n}: {n}\r\n" for n in range(200))),
    "early hints first": b"HTTP/1.1 103 X\r\nlink: x\r\n\r\n" + reply(),
    "gzip, though not asked for": reply(gzip.compress(CHAT), headers="content-encoding: gzip\r\n"),
}


@pytest.mark.parametrize("name", GOOD)
def test_odd_replies_are_read_and_their_connection_goes_on(name):
    with RawServer(always(GOOD[name])) as server:
        replies = with_engine(server, lambda engine: run_one_after_another(engine, 3))
        assert [json.loads(one.body) for one in replies] == [json.loads(CHAT)] * 3
        assert len(server.connections) == 1
        assert "accept-encoding: identity\r\n" in server.requests[0].head


def test_a_reply_ends_with_its_connection_where_nothing_else_says_so():
    with RawServer(
        lambda connection: (connection.read(), connection.send_and_close(b"HTTP/1.0 200 X\r\n\r\n" + CHAT))
    ) as server:
        replies = with_engine(server, lambda engine: run_one_after_another(engine, 3))
        assert [one.body for one in replies] == [CHAT] * 3


def test_a_reply_of_20_mb_is_whole():
    body = CHAT[:-1] + b', "x": "%b"}' % (b"y" * 20_000_000)
    with RawServer(always(reply(body))) as server:
        assert outcome_of(server).body == body


def test_a_request_of_20_mb_is_whole_and_an_early_answer_to_it_is_read():
    def early(connection):
        connection.read_head()
        connection.send(reply(b'{"error":{"message":"too large"}}', status=413))
        connection.wait_for_end()

    with RawServer(always(reply())) as server:
        assert outcome_of(server, LARGE).status_code == 200
        assert server.requests[0].body == LARGE.body
    with RawServer(early) as server:
        outcome = outcome_of(server, LARGE)
        assert (outcome.code, outcome.message) == (ErrorCode.ENGINE_UNSUITED, "the engine answered HTTP 413: too large")
        assert server.hung_up.wait(HANG_UP_S)


CUT = {
    "amid the head": b"HTTP/1.1 200 X\r\ncontent-le",
    "amid the body": reply()[:-10],
    "amid a chunk": chunked(CHAT, end=b"")[:-10],
    "before the last chunk": chunked(CHAT, end=b""),
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
}


@pytest.mark.parametrize("name", CUT)
def test_a_reply_that_is_cut_is_the_engines_failure_and_is_asked_for_once(name):
    with RawServer(lambda connection: (connection.read(), connection.send_and_close(CUT[name]))) as server:
        assert told(outcome_of(server)) == (ErrorCode.ENGINE_FAILED, False)
        assert len(server.requests) == 1


@pytest.mark.parametrize("body", [b"no gzip at all", gzip.compress(b"x" * 1000)[:12] + b"garbage" * 9])
def test_a_broken_encoding_is_an_invalid_reply(body):
    with RawServer(always(reply(body, headers="content-encoding: gzip\r\n"))) as server:
        outcome = outcome_of(server)
        assert (told(outcome), outcome.status_code) == ((ErrorCode.ENGINE_INVALID_REPLY, False), 200)


def test_a_reply_that_grows_without_end_is_hung_up_on():
    """Also one that is small on the wire."""

    def endless(connection):
        connection.read()
        connection.send(b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n")
        try:
            while True:
                connection.send(b"10000\r\n" + b" " * 65_536 + b"\r\n")
        except OSError:
            server.hung_up.set()

    with RawServer(endless) as server:
        assert told(outcome_of(server, reply_bytes_max=500_000)) == (ErrorCode.REPLY_TOO_LARGE, False)
        assert server.hung_up.wait(HANG_UP_S)
    bomb = reply(gzip.compress(b" " * 50_000_000), headers="content-encoding: gzip\r\n")
    with RawServer(always(bomb)) as server:
        assert told(outcome_of(server, reply_bytes_max=500_000)) == (ErrorCode.REPLY_TOO_LARGE, False)


# ------------------------------------------------------------------------------------------------ no connection


def test_what_never_was_sent_is_free(tmp_path):
    certificates = Certificates(tmp_path)
    free = (ErrorCode.ENGINE_UNREACHABLE, True)
    with closing(socket.socket()) as deaf:
        deaf.bind(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        assert told(outcome_of(f"http://127.0.0.1:{port}")) == free  # refused
        deaf.listen(0)
        with closing(socket.create_connection(deaf.getsockname())):  # one waits in line, and there is no more room
            began = time.monotonic()
            assert told(outcome_of(f"http://127.0.0.1:{port}", connect_timeout_seconds=0.2)) == free
            assert time.monotonic() - began < 2
    assert told(outcome_of("http://no-such-name.invalid")) == free
    with RawServer(always(reply()), certificates.stranger) as server:
        assert told(outcome_of(server)) == free
        assert not server.requests
    with RawServer(always(reply())) as server:
        assert told(outcome_of(server.url.replace("http:", "https:"), connect_timeout_seconds=0.3)) == free


def test_https_works_with_a_certificate_that_is_trusted(tmp_path, monkeypatch):
    certificates = Certificates(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.trusted_file))
    with RawServer(always(reply()), certificates.trusted) as server:
        replies = with_engine(server, lambda engine: run_one_after_another(engine, 3))
        assert [one.body for one in replies] == [CHAT] * 3
        assert len(server.connections) == 1
