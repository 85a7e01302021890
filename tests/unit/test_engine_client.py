"""The engine's HTTP client over raw sockets: when a connection is used again, and when it is closed."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from broker.domain.errors import ErrorCode
from tests.harness.certificates import Certificates
from tests.harness.raw_server import RawServer, reply
from tests.unit.engine_calls import CALL, HANG_UP_S, LARGE, always, run_one_after_another, told, with_engine
from workers.engine import EngineError, EngineRequest
from workers.engines import connections


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


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


@pytest.mark.parametrize("cut", [b"", b"HTTP/1.1 200 X\r\ncont"], ids=["at once", "amid the head"])
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
