"""Engines behind a proxy that the environment names, and what else of the environment an engine's client heeds."""

from __future__ import annotations

import asyncio
from base64 import b64encode

import pytest

from broker.domain.errors import ErrorCode
from tests.harness.certificates import Certificates
from tests.harness.raw_server import RawServer, reply
from workers.engine import EngineError, EngineReply, EngineRequest
from workers.engines.openai_http import OpenAIHttpEngine

CALL = EngineRequest("label-1", "/v1/chat/completions", b"{}")
UNREACHABLE = (ErrorCode.ENGINE_UNREACHABLE, True)


@pytest.fixture
def environment(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def replies_of(url: str, count: int = 1, **options) -> list[EngineReply]:
    async def run():
        engine = OpenAIHttpEngine(url, **options)
        try:
            return [await engine.run(CALL) for _ in range(count)]
        finally:
            await engine.stop()

    return asyncio.run(run())


def error_of(url: str) -> tuple[ErrorCode, bool, str]:
    with pytest.raises(EngineError) as caught:
        replies_of(url)
    return caught.value.code, caught.value.is_free, caught.value.message


def answer(connection):
    while connection.read():
        connection.send(reply())


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_a_proxy_gets_the_whole_address_over_one_connection(environment, variable):
    with RawServer(answer) as proxy:
        environment.setenv(variable, proxy.url.replace("//", "//me:secret@"))
        assert len(replies_of("http://engine.invalid:8000", 3)) == 3
        assert len(proxy.connections) == 1
        heads = [request.head for request in proxy.requests]
    assert all(head.startswith("post http://engine.invalid:8000/v1/chat/completions http/1.1\r\n") for head in heads)
    assert all("\r\nhost: engine.invalid:8000\r\n" in head for head in heads)
    assert all(f"\r\nproxy-authorization: basic {b64encode(b'me:secret').decode().lower()}\r\n" in one for one in heads)


@pytest.mark.parametrize(
    ("exempt", "use_proxy", "goes_by"),
    [("", False, 0), ("127.0.0.1", True, 0), ("other.invalid,127.0.0.1:PORT", True, 0), ("*", True, 0), ("", True, 1)],
)
def test_what_needs_no_proxy_goes_straight(environment, exempt, use_proxy, goes_by):
    with RawServer(answer) as proxy, RawServer(answer) as engine:
        environment.setenv("HTTP_PROXY", proxy.url)
        environment.setenv("NO_PROXY", exempt.replace("PORT", str(engine.port)))
        replies_of(engine.url, use_proxy=use_proxy)
        assert (len(proxy.requests), len(engine.requests)) == (goes_by, 1 - goes_by)


def test_a_tunnel_for_https_is_dug_once_and_used_again(environment, tmp_path):
    certificates = Certificates(tmp_path)
    environment.setenv("SSL_CERT_FILE", str(certificates.trusted_file))

    def dig(connection):
        heads.append(connection.read_head())
        connection.send(b"HTTP/1.1 200 X\r\n\r\n")
        connection.socket = certificates.trusted.wrap_socket(connection.socket, server_side=True)
        answer(connection)

    heads: list[str] = []
    with RawServer(dig) as proxy:
        environment.setenv("HTTPS_PROXY", proxy.url)
        assert len(replies_of("https://127.0.0.1:8443", 3)) == 3
        assert len(heads) == 1
        assert heads[0].startswith("connect 127.0.0.1:8443 http/1.1\r\n")
        assert len(proxy.requests) == 3


def test_a_proxy_that_does_not_get_there_costs_nothing(environment):
    def refuse(connection):
        connection.read()
        connection.send(b"HTTP/1.1 403 X\r\ncontent-length: 0\r\n\r\n")

    said = "the engine at https://engine.invalid can't be reached: its proxy"
    environment.setenv("HTTPS_PROXY", "http://me:secret@127.0.0.1:9")
    assert error_of("https://engine.invalid") == (*UNREACHABLE, f"{said}: Connection refused")
    with RawServer(refuse) as proxy:
        environment.setenv("HTTPS_PROXY", proxy.url.replace("//", "//me:secret@"))
        assert error_of("https://engine.invalid") == (*UNREACHABLE, f"{said} answers HTTP 403")


def test_a_proxy_of_another_kind_is_refused_by_name(environment):
    environment.setenv("ALL_PROXY", "socks5://me:secret@127.0.0.1:1080")
    code, is_free, message = error_of("http://engine.invalid")
    assert (code, is_free) == (ErrorCode.ENGINE_MISCONFIGURED, True)
    assert "the kind 'socks5', which must be http or https" in message
    assert "secret" not in message


def test_certificates_that_cannot_be_read_are_a_misconfiguration(environment):
    environment.setenv("SSL_CERT_FILE", "no-such-file.pem")
    code, _, message = error_of("https://engine.invalid")
    assert code is ErrorCode.ENGINE_MISCONFIGURED
    assert message.endswith("SSL_CERT_FILE='no-such-file.pem' can't be read: No such file or directory")


def test_no_password_is_taken_from_a_netrc_file(environment, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    environment.setenv("NETRC", str(tmp_path / "netrc"))
    with RawServer(answer) as engine:
        replies_of(engine.url)
        assert "authorization" not in engine.requests[0].head
