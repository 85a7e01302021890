"""OpenAI-shaped servers in trouble: many in one thread, each ill in its own way until its time has come, then well.

A server knows the job of each call by the last word of its prompt. The time of all of them begins with the first call
that any of them gets, so that who starts them needn't hurry.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from tests.harness.certificates import Certificates

__all__ = ["RETRY_AFTER_S", "SLOW_S", "TROUBLES", "UNSEEN", "WELL_S", "Call", "SickServer", "Terms", "Ward"]

WELL_S = 0.05
SLOW_S = 10 * WELL_S
RETRY_AFTER_S = 4
NEVER = math.inf

_HOST = "127.0.0.1"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_LAST_WORD = re.compile(r"\S+$")
_NOT_NOW = b'{"error": {"message": "not now", "type": "server_error"}}'
_LOADING = b'{"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}'
_ERROR_IN_200 = b'{"error": {"message": "upstream is overloaded", "code": 429}}'
_EMPTY = b'{"id": "c1", "object": "chat.completion", "choices": [], "usage": null}'
_ELSEWHERE = {"location": "https://elsewhere.invalid/v1/chat/completions"}
_ANSWER = json.dumps(
    {
        "id": "c1",
        "object": "chat.completion",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    }
).encode()


class Said(NamedTuple):
    """An answer as it goes over the wire. `cut`: its second half doesn't."""

    status: int
    body: bytes = _NOT_NOW
    headers: dict[str, str] = {}  # noqa: RUF012 (nobody writes into it)
    cut: bool = False


_SAID = {
    **{str(status): Said(status) for status in (402, 408, 429, 500, 502, 503, 504, 529)},
    "307": Said(307, headers=_ELSEWHERE),
    "308": Said(308, headers=_ELSEWHERE),
    "200 with an error": Said(200, _ERROR_IN_200),
    "200 without choices": Said(200, _EMPTY),
    "cut amid the reply": Said(200, _ANSWER, cut=True),
    "loading": Said(503, _LOADING),
}
_RETRY_AFTER = ("429, Retry-After in seconds", "429, Retry-After as a date")
UNSEEN = ("refused connection", "no such name", "TLS to a plain port", "bad certificate")
"""Those in which no call reaches the server."""
_TLS = UNSEEN[2:]
TROUBLES = (*_SAID, *_RETRY_AFTER, "no answer", *UNSEEN, "ten times as slow")


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong, one of TROUBLES or nothing, and from which second on it no longer is.

    `at_once` and `per_second`: what a well server takes, no limit where 0; above that it says 429.
    """

    name: str
    trouble: str = ""
    well_after_s: float = 0.0
    at_once: int = 0
    per_second: int = 0


class Call(NamedTuple):
    """One that reached the server, and in which second that was."""

    job: str
    second: float
    is_good: bool


class SickServer:
    """One of a ward's. All but `url` and `calls` is for the ward's loop."""

    def __init__(self, terms: Terms, ward: Ward) -> None:
        self.terms = terms
        self.calls: list[Call] = []
        self._ward = ward
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((_HOST, 0))  # a port of its own that refuses connections until somebody listens
        self._server: asyncio.Server | None = None
        self._inside = 0
        self._lately: deque[float] = deque()

    @property
    def url(self) -> str:
        """What its lane's `base_url` is."""
        scheme = "https" if self.terms.trouble in _TLS else "http"
        host = self.host_name if self.terms.trouble == "no such name" else _HOST
        return f"{scheme}://{host}:{self._socket.getsockname()[1]}"

    @property
    def host_name(self) -> str:
        """For `tests.harness.unsure_names`."""
        return f"{re.sub('[^a-z0-9]+', '-', self.terms.name)}.sick.test"

    async def open(self) -> None:
        match self.terms.trouble:
            case "refused connection":
                pass
            case "bad certificate":
                await self._listen(self._ward.certificates.stranger)
            case _:
                await self._listen(None)

    async def recover(self) -> None:
        """Its time has come."""
        match self.terms.trouble:
            case "refused connection":
                await self._listen(None)
            case "TLS to a plain port" | "bad certificate":
                await self._listen(self._ward.certificates.trusted)
            case "no such name":
                (self._ward.folder / self.host_name).touch()

    def close(self) -> None:
        if self._server:
            self._server.close()
        self._socket.close()

    async def _listen(self, context: ssl.SSLContext | None) -> None:
        if self._server:
            self._server.close()
        self._server = await asyncio.start_server(self._converse, sock=self._socket.dup(), ssl=context, backlog=256)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer_one(reader, writer):
                pass
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection goes on."""
        method = await reader.readexactly(1)
        if not method.isalpha():  # what a client that wants TLS says first
            writer.write(b"HTTP/1.1 400 -\r\ncontent-length: 0\r\n\r\n")
            return False
        head = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        asked = json.loads(await reader.readexactly(int(length[1]) if length else 0))
        found = _LAST_WORD.search(asked["messages"][-1]["content"])
        second = self._ward.second()
        is_sick = second < self.terms.well_after_s
        if is_sick and self.terms.trouble == "no answer":
            self.calls.append(Call(found[0] if found else "", second, is_good=False))
            await reader.read()  # until who asked has gone
            return False
        self._inside += 1
        try:
            said, answer_s = self._said(second, is_sick=is_sick)
            is_good = said.status == 200 and said.body is _ANSWER and not said.cut
            self.calls.append(Call(found[0] if found else "", second, is_good))
            if answer_s:
                await asyncio.sleep(answer_s)
        finally:
            self._inside -= 1
        fields = {"content-type": "application/json", "content-length": str(len(said.body)), **said.headers}
        lines = [f"HTTP/1.1 {said.status} -", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        body = said.body[: len(said.body) // 2] if said.cut else said.body
        writer.write("\r\n".join(lines).encode() + body)
        await writer.drain()
        return not said.cut

    def _said(self, second: float, *, is_sick: bool) -> tuple[Said, float]:
        """What it answers, and after how long."""
        trouble = self.terms.trouble
        if is_sick and trouble in _SAID:
            return _SAID[trouble], 0.0
        if is_sick and trouble in _RETRY_AFTER:
            # A date has no fractions, so it is rounded up.
            until = formatdate(math.ceil(time.time()) + RETRY_AFTER_S, usegmt=True)
            value = until if trouble == _RETRY_AFTER[1] else str(RETRY_AFTER_S)
            return Said(429, headers={"retry-after": value}), 0.0
        if self._is_over(second):
            return _SAID["429"], 0.0
        return Said(200, _ANSWER), SLOW_S if is_sick and trouble == "ten times as slow" else WELL_S

    def _is_over(self, second: float) -> bool:
        if self.terms.per_second:
            while self._lately and self._lately[0] <= second - 1.0:
                self._lately.popleft()
            if len(self._lately) >= self.terms.per_second:
                return True
            self._lately.append(second)
        return bool(self.terms.at_once) and self._inside > self.terms.at_once


class Ward:
    """Holds the servers while it is entered. `folder` is what `tests.harness.unsure_names` looks at."""

    def __init__(self, terms: Sequence[Terms], folder: Path, certificates: Certificates) -> None:
        self.folder, self.certificates = folder, certificates
        self._began_s: float | None = None
        self._first_call = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ward", daemon=True)
        self._recoveries: set[asyncio.Task[None]] = set()
        self.servers = {one.name: SickServer(one, self) for one in terms}

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def second(self) -> float:
        """Since the first call; to be asked on the loop alone, for it may be the first."""
        now_s = time.monotonic()
        if self._began_s is None:
            self._began_s = now_s
            for server in self.servers.values():
                if 0 < server.terms.well_after_s < NEVER:
                    self._loop.call_later(server.terms.well_after_s, self._recover, server)
        return now_s - self._began_s

    def _recover(self, server: SickServer) -> None:
        task = self._loop.create_task(server.recover())
        self._recoveries.add(task)
        task.add_done_callback(self._recoveries.discard)

    async def _open(self) -> None:
        for server in self.servers.values():
            await server.open()

    async def _close(self) -> None:
        for server in self.servers.values():
            server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
