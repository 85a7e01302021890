"""The door: one port takes AMQP and HTTP, each with and without TLS, told apart by their first bytes."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Protocol, cast

from infra.emulators.servicebus.admin.atom import answer_admin, failure
from infra.emulators.servicebus.admin.control import answer_control
from infra.emulators.servicebus.admin.http import HttpConnection, HttpRequest, HttpResponse
from infra.emulators.servicebus.faults import Action, Point
from infra.emulators.servicebus.peer.connection import Connection
from infra.emulators.servicebus.service import Service

__all__ = ["Server"]

log = logging.getLogger(__name__)

TLS_RECORD = 0x16
SNIFF_SECONDS = 30.0


class _Speaker(Protocol):
    """Whoever takes over once the first bytes have told what is spoken."""

    def feed(self, data: bytes) -> None: ...

    def lost(self) -> None: ...

    def drained(self) -> None: ...


class _Entrance(asyncio.Protocol):
    """Behind TLS, if any: waits for four bytes, then hands over."""

    def __init__(self, choose: Callable[[asyncio.Transport, bytes], _Speaker]) -> None:
        self._choose = choose
        self._speaker: _Speaker | None = None
        self._transport: asyncio.Transport | None = None
        self._early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._speaker is None and self._transport is not None:
            self._early += data
            if len(self._early) < 4:
                return
            data, self._early = self._early, b""
            self._speaker = self._choose(self._transport, data)
        if self._speaker is not None:
            self._speaker.feed(data)

    def resume_writing(self) -> None:
        if self._speaker is not None:
            self._speaker.drained()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio gives it)
        if self._speaker is not None:
            self._speaker.lost()


class Server:
    """Listens for one service on any number of ports."""

    def __init__(self, service: Service, context: ssl.SSLContext | None) -> None:
        self.service = service
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets: list[socket.socket] = []

    def listen(self, host: str, port: int, *, control: bool = False) -> int:
        """The port it listens on; 0 asks for any free one."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=512)
        listener.setblocking(False)
        self._sockets.append(listener)
        self._start(self._accept(listener, control=control))
        return int(listener.getsockname()[1])

    async def close(self) -> None:
        """Cut everything."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listener in self._sockets:
            listener.close()
        for peer in list(self.service.peers):
            peer.abort()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket, *, control: bool) -> None:
        while True:
            try:
                taken, _ = await self._loop.sock_accept(listener)
            except OSError as error:
                log.warning("accepting failed: %s", error)
                await asyncio.sleep(0.1)
                continue
            taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._start(self._welcome(taken, control=control))

    async def _welcome(self, taken: socket.socket, *, control: bool) -> None:
        try:
            first = await asyncio.wait_for(self._first_byte(taken), SNIFF_SECONDS)
            fault = None if control else self.service.faults.strike(Point.CONNECT, "*")
            if fault is not None and fault.action is Action.DELAY:
                await asyncio.sleep(fault.delay_seconds)
            # Without a certificate a TLS client would wait for ever for our answer.
            hopeless = first == TLS_RECORD and self._context is None
            if first is None or hopeless or (fault is not None and fault.action is not Action.DELAY):
                taken.close()
                return
            context = self._context if first == TLS_RECORD else None
            choose = self._control if control else self._choose
            await self._loop.connect_accepted_socket(lambda: _Entrance(choose), taken, ssl=context)
        except (OSError, TimeoutError, ssl.SSLError) as error:
            log.info("a connection came to nothing: %s", error)
            taken.close()

    async def _first_byte(self, taken: socket.socket) -> int | None:
        """Look at the first byte and leave it there; None at the end of the stream."""
        readable: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(taken.fileno(), _mark, readable)
        try:
            await readable
        finally:
            self._loop.remove_reader(taken.fileno())
        first = taken.recv(1, socket.MSG_PEEK)
        return first[0] if first else None

    def _choose(self, transport: asyncio.Transport, first: bytes) -> _Speaker:
        if first.startswith(b"AMQP"):
            return Connection(self.service, transport)
        return HttpConnection(transport, self._administrate)

    def _control(self, transport: asyncio.Transport, _: bytes) -> _Speaker:
        def answer(request: HttpRequest, respond: Callable[[HttpResponse | None], None]) -> None:
            respond(answer_control(self.service, request))

        return HttpConnection(transport, answer)

    def _administrate(self, request: HttpRequest, respond: Callable[[HttpResponse | None], None]) -> None:
        """Answer an administration request, or go wrong on order."""
        fault = self.service.faults.strike(Point.ADMIN, request.path.strip("/"))
        match None if fault is None else fault.action:
            case Action.REFUSE if fault is not None:
                respond(failure(fault.refusal().status, fault.description))
            case Action.DROP_BEFORE:
                respond(None)
            case Action.DELAY if fault is not None:
                self._loop.call_later(fault.delay_seconds, respond, answer_admin(self.service, request))
            case Action.LOSE:
                answer_admin(self.service, request)
            case Action.DROP_AFTER | Action.DETACH:
                answer_admin(self.service, request)
                respond(None)
            case _:
                respond(answer_admin(self.service, request))


def _mark(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
