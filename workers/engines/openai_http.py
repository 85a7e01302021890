"""Any server that speaks OpenAI's HTTP interface: vLLM, llama.cpp, TGI, SGLang, or a vendor's own."""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import msgspec
from aiohttp.http_exceptions import ContentEncodingError

from broker.domain.errors import ErrorCode
from workers.engine import EngineError, EngineReply, EngineRequest
from workers.engines.calls import CallLog
from workers.engines.connections import open_session, reason_of
from workers.engines.reply import ENDPOINTS, read_reply, refusal

__all__ = ["ERROR_BODY_BYTES_MAX", "REPLY_BYTES_MAX", "OpenAIHttpEngine"]

REPLY_BYTES_MAX = 64_000_000
ERROR_BODY_BYTES_MAX = 1_000_000

_WHOLE_BYTES_MAX = 1_000_000  # what is larger is sent piece by piece, as the server takes it

_HEALTH_SECONDS = 10.0

# No request has been sent: refused, no such name, TLS, too slow to connect, or a proxy that doesn't get there.
_NOT_CONNECTED = (
    aiohttp.ClientConnectorError,
    aiohttp.ClientConnectorCertificateError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientHttpProxyError,
)


class OpenAIHttpEngine:
    """Posts each body unchanged to `base_url` + endpoint; at most `concurrency` requests are under way.

    `base_url` is without the `/v1`; one at its end is dropped. `api_key_variable` names the environment variable
    that holds the key; the key itself is read at `start` and appears nowhere else. `api_key` is for a caller
    that made the key up itself. `served_model`, if set, replaces the body's `model`. `health_path`, if set, must
    answer 2xx for `start` to succeed. `counts_one_choice` says that its usage is of one answer only, however many it
    gives; `context_tokens` is the model's window, 0 where nobody says. `use_proxy` lets HTTP_PROXY and its kin
    apply. `call_log` names a `CallLog`.

    `request_timeout_seconds` spans one request from its sending to the reply's last byte; waiting for one of the
    `concurrency` places doesn't count. `connect_timeout_seconds` is the part of it that connecting may take.
    """

    def __init__(
        self,
        base_url: str,
        *,
        concurrency: int = 64,
        request_timeout_seconds: float = 300.0,
        connect_timeout_seconds: float = 5.0,
        served_model: str = "",
        api_key_variable: str = "",
        api_key: str = "",
        health_path: str = "",
        counts_one_choice: bool = False,
        context_tokens: int = 0,
        use_proxy: bool = True,
        reply_bytes_max: int = REPLY_BYTES_MAX,
        call_log: str | Path = "",
    ) -> None:
        self._base_url = _checked_base_url(base_url)
        self._concurrency = concurrency
        self._request_timeout_seconds = request_timeout_seconds
        self._connect_timeout_seconds = connect_timeout_seconds
        self._served_model = msgspec.Raw(msgspec.json.encode(served_model)) if served_model else None
        self._api_key_variable = api_key_variable
        self._api_key = api_key
        self._health_path = health_path
        self._counts_one_choice = counts_one_choice
        self._context_tokens = context_tokens
        self._use_proxy = use_proxy
        self._reply_bytes_max = reply_bytes_max
        self._call_log = CallLog(call_log)
        self._places = asyncio.Semaphore(concurrency)
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        self._call_log.open()
        session = self._opened_session()
        if not self._health_path:
            return
        try:
            async with (
                asyncio.timeout(min(self._request_timeout_seconds, _HEALTH_SECONDS)),
                session.get(self._base_url + self._health_path, allow_redirects=False) as response,
            ):
                status_code = response.status
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _unreachable(self._base_url, reason_of(error)) from None
        if not 200 <= status_code < 300:
            # Whatever it says: while a server or a proxy before it starts, that may be 503, 404 or a redirect.
            message = f"the engine at {self._base_url} isn't ready: its health check answers HTTP {status_code}"
            raise EngineError(ErrorCode.ENGINE_STARTING, message, status_code=status_code, is_free=True)

    async def run(self, request: EngineRequest) -> EngineReply:
        if request.endpoint not in ENDPOINTS:
            # The endpoint becomes part of an address: what isn't known is never sent.
            message = f"this engine serves {', '.join(ENDPOINTS)} only"
            raise EngineError(ErrorCode.INVALID_URL, message, is_free=True)
        session = self._opened_session()
        content = self._content(request.body)
        async with self._places:
            self._call_log.append(request.label)
            status_code, headers, body = await self._post(session, request.endpoint, content)
        if not 200 <= status_code < 300:
            url = self._base_url + request.endpoint
            raise refusal(status_code, body, headers, url=url, now_s=time.time())
        return read_reply(
            request,
            status_code,
            body,
            request_id=headers.get("x-request-id", ""),
            context_tokens=self._context_tokens,
            counts_one_choice=self._counts_one_choice,
        )

    async def stop(self) -> None:
        self._call_log.close()
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _opened_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {"content-type": "application/json", "accept": "application/json", "accept-encoding": "identity"}
            if key := self._read_key():
                headers["authorization"] = f"Bearer {key}"
            try:
                self._session = open_session(
                    self._base_url,
                    headers,
                    connect_timeout_seconds=self._connect_timeout_seconds,
                    use_proxy=self._use_proxy,
                )
            except ValueError as error:
                message = f"the engine at {self._base_url} can't be used: {error}"
                raise EngineError(ErrorCode.ENGINE_MISCONFIGURED, message, is_free=True) from None
        return self._session

    def _read_key(self) -> str:
        if not self._api_key_variable:
            return self._api_key
        key = os.environ.get(self._api_key_variable, "").strip()
        if not (key and key.isascii() and key.isprintable()):
            problem = f"the environment variable {self._api_key_variable} must hold its API key"
            message = f"the engine at {self._base_url} can't be used: {problem}"
            raise EngineError(ErrorCode.ENGINE_MISCONFIGURED, message, is_free=True)
        return key

    def _content(self, body: bytes) -> bytes:
        if self._served_model is None:
            return body
        try:
            fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            message = "the request's body is not a JSON object"
            raise EngineError(ErrorCode.INVALID_BODY, message, is_free=True) from None
        fields["model"] = self._served_model
        return msgspec.json.encode(fields)

    async def _post(
        self, session: aiohttp.ClientSession, endpoint: str, content: bytes
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of one exchange; an error's body is dropped where it is too large."""
        status_code = 0
        data = content if len(content) <= _WHOLE_BYTES_MAX else io.BytesIO(content)
        try:
            async with (
                asyncio.timeout(self._request_timeout_seconds),
                # A redirect would carry prompts and key to a place that nobody named.
                session.post(self._base_url + endpoint, data=data, allow_redirects=False) as response,
            ):
                status_code = response.status
                body = await self._read_body(response)
                return status_code, response.headers, body
        except _NOT_CONNECTED as error:
            raise _unreachable(self._base_url, reason_of(error)) from None
        except TimeoutError:
            message = f"the engine gave no full answer within {self._request_timeout_seconds:g} s"
            raise EngineError(ErrorCode.ENGINE_TIMEOUT, message, status_code=status_code) from None
        except aiohttp.ClientError as error:
            if _is_encoding(error):
                message = "the engine's reply is invalid: its content encoding is broken"
                raise EngineError(ErrorCode.ENGINE_INVALID_REPLY, message, status_code=status_code) from None
            # The request was on its way, so it may have run, and may have been what broke the connection.
            message = f"the connection to the engine broke ({type(error).__name__})"
            raise EngineError(ErrorCode.ENGINE_FAILED, message, status_code=status_code) from None

    async def _read_body(self, response: aiohttp.ClientResponse) -> bytes:
        is_success = 200 <= response.status < 300
        limit = self._reply_bytes_max if is_success else ERROR_BODY_BYTES_MAX
        chunks, size = [], 0
        async for chunk in response.content.iter_any():
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                if not is_success:
                    return b""
                # Asked again it would be as large, and be paid for again.
                message = f"the engine's reply is larger than {limit:,} bytes"
                raise EngineError(ErrorCode.REPLY_TOO_LARGE, message, status_code=response.status)
        return b"".join(chunks)


def _checked_base_url(base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"engine option base_url={base_url!r} must be http(s)://host[:port][/path]")
    if parts.username is not None or parts.password is not None:
        raise ValueError("engine option base_url must not hold a user name or password; use api_key_variable")
    return base_url.rstrip("/").removesuffix("/v1")


def _unreachable(base_url: str, reason: str) -> EngineError:
    message = f"the engine at {base_url} can't be reached: {reason}"
    return EngineError(ErrorCode.ENGINE_UNREACHABLE, message, is_free=True)


def _is_encoding(error: Exception) -> bool:
    return isinstance(error.__cause__, ContentEncodingError)
