"""The connections to one engine: kept alive while they are good, and closed at once where a call is given up."""

from __future__ import annotations

import asyncio
import functools
import os
import select
import ssl
from collections.abc import Callable, Mapping
from typing import cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import certifi
from aiohttp.client_proto import ResponseHandler

__all__ = ["open_session", "reason_of"]

# Shorter than the 5 s after which llama.cpp and uvicorn close an idle connection: a request sent into a
# connection that the server is just closing fails, and we may not send it again.
_KEEP_ALIVE_SECONDS = 2.0

# Far above what servers send; aiohttp's own 8,190 bytes and 128 lines have been met by proxies' cookies and policies.
_HEADER_LINE_BYTES_MAX = 256_000
_HEADER_LINES_MAX = 256

_REASON_CHARACTERS_MAX = 200


def open_session(
    base_url: str, headers: Mapping[str, str], *, connect_timeout_seconds: float, use_proxy: bool
) -> aiohttp.ClientSession:
    """A session for calls to `base_url`. What a call costs doesn't depend on how many are under way.

    It limits nothing but connecting and the size of headers: the caller bounds how many calls there are, and how long
    one takes. It sends no cookies and reads no `.netrc`; `use_proxy` lets HTTP_PROXY and its kin apply, as they are
    now. Raises ValueError where the proxy or the certificates named there can't be used.
    """
    proxy = _proxy_for(base_url) if use_proxy else None
    connector = aiohttp.TCPConnector(
        limit=0,
        keepalive_timeout=_KEEP_ALIVE_SECONDS,
        # Loading the certificates takes 20 ms or more; without TLS and redirects there is nothing to verify.
        ssl=_verifying() if base_url.startswith("https:") else True,
    )
    make = functools.partial(_made, asyncio.get_running_loop())
    connector._factory = make  # noqa: SLF001 (there is no public place for it; test_engine_client sees its effects)
    return aiohttp.ClientSession(
        connector=connector,
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=connect_timeout_seconds),
        proxy=proxy,
        max_line_size=_HEADER_LINE_BYTES_MAX,
        max_field_size=_HEADER_LINE_BYTES_MAX,
        max_headers=_HEADER_LINES_MAX,
    )


class _Connection(ResponseHandler):
    """As aiohttp's, but for two things that a server which mustn't be sent a request twice, or in vain, asks for."""

    def is_connected(self) -> bool:
        """Whether a request may be sent.

        The server may have closed it while the loop was busy elsewhere: then its end lies in the socket, unread.
        """
        transport = self.transport
        if transport is None or transport.is_closing():
            return False
        peer = transport.get_extra_info("socket")
        return peer is None or not _has_something(peer.fileno())

    def close(self) -> None:
        """Let go at once. A transport's own `close` first sends what is still unsent, however long nobody reads it."""
        self.abort()


def _made(loop: asyncio.AbstractEventLoop) -> ResponseHandler:
    return _Connection(loop)


def _has_something(descriptor: int) -> bool:
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def reason_of(error: Exception) -> str:
    """Why there is no connection, in the system's words: refused, no such name, a certificate that isn't good.

    It names no proxy, whose address may hold a password.
    """
    match error:
        case aiohttp.ConnectionTimeoutError():
            words = "it takes too long to connect"
        case aiohttp.ClientHttpProxyError():
            words = f"its proxy answers HTTP {error.status}"
        case aiohttp.ClientProxyConnectionError():
            words = f"its proxy: {_words_of(error.os_error)}"
        case aiohttp.ClientConnectorCertificateError():
            words = _words_of(error.certificate_error)
        case aiohttp.ClientConnectorError():
            words = _words_of(error.os_error)
        case _:
            words = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return "".join(one if one.isprintable() else " " for one in words)[:_REASON_CHARACTERS_MAX]


def _words_of(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused, {error.verify_message}"
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno:
        return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)  # below 0: no such name
    return str(error) or type(error).__name__


def _verifying() -> ssl.SSLContext:
    """SSL_CERT_FILE or SSL_CERT_DIR, where set, or else the authorities that browsers trust."""
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    try:
        context = ssl.create_default_context(
            cafile=file or (None if folder else certifi.where()), capath=None if file else folder
        )
    except OSError as error:
        raise ValueError(f"the certificates of SSL_CERT_FILE={file!r} can't be read: {_words_of(error)}") from None
    context.set_alpn_protocols(["http/1.1"])
    return context


def _proxy_for(base_url: str) -> str | None:
    parts = urlsplit(base_url)
    # Typed for hosts alone, but made for `host:port` as well.
    is_exempt = cast("Callable[[str], bool]", proxy_bypass)
    if is_exempt(parts.hostname or "") or is_exempt(parts.netloc):
        return None
    named = getproxies()
    proxy = named.get(parts.scheme) or named.get("all")
    if not proxy:
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    scheme = urlsplit(proxy).scheme
    if scheme not in ("http", "https"):
        raise ValueError(f"the environment names a proxy of the kind {scheme!r}, which must be http or https")
    return proxy
