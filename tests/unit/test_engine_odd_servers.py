"""The engine's HTTP client over raw sockets: odd replies, and servers that aren't there."""

from __future__ import annotations

import gzip
import json
import socket
import time
from contextlib import closing

import pytest

from broker.domain.errors import ErrorCode
from tests.harness.certificates import Certificates
from tests.harness.raw_server import CHAT, RawServer, reply
from tests.unit.engine_calls import HANG_UP_S, LARGE, always, outcome_of, run_one_after_another, told, with_engine


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


@pytest.mark.parametrize(
    "body", [b"no gzip at all", gzip.compress(b"x" * 1000)[:12] + b"garbage" * 9], ids=["from the start", "further on"]
)
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


def why(outcome) -> str:
    """What stands after the engine's address, of an error that cost nothing."""
    assert told(outcome) == (ErrorCode.ENGINE_UNREACHABLE, True)
    return outcome.message.partition("can't be reached: ")[2]


def hang_up_on_tls(connection):
    connection.socket.recv(1_000)
    connection.send(b"HTTP/1.1 400 X\r\ncontent-length: 0\r\n\r\n")


def test_what_never_was_sent_is_free_and_says_why(tmp_path):
    certificates = Certificates(tmp_path)
    with closing(socket.socket()) as deaf:
        deaf.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        assert why(outcome_of(url)) == "Connection refused"
        deaf.listen(0)
        with closing(socket.create_connection(deaf.getsockname())):  # one waits in line, and there is no more room
            began = time.monotonic()
            assert why(outcome_of(url, connect_timeout_seconds=0.2)) == "it takes too long to connect"
            assert time.monotonic() - began < 2
    assert "ame" in why(outcome_of("http://no-such-name.invalid"))  # the system's words, that speak of the name
    with RawServer(always(reply()), certificates.stranger) as server:
        assert why(outcome_of(server)) == "its certificate is refused, self-signed certificate"
        assert not server.requests
    with RawServer(hang_up_on_tls) as server:
        assert "WRONG_VERSION_NUMBER" in why(outcome_of(server.url.replace("http:", "https:")))


def test_https_works_with_a_certificate_that_is_trusted(tmp_path, monkeypatch):
    certificates = Certificates(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.trusted_file))
    with RawServer(always(reply()), certificates.trusted) as server:
        replies = with_engine(server, lambda engine: run_one_after_another(engine, 3))
        assert [one.body for one in replies] == [CHAT] * 3
        assert len(server.connections) == 1
