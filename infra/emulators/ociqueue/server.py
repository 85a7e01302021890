"""Sockets: connections that ask one thing after another, answered in order, with the faults that were ordered."""

from __future__ import annotations

import asyncio
import logging

from infra.emulators.ociqueue.api import answer
from infra.emulators.ociqueue.control import answer_control
from infra.emulators.ociqueue.faults import Action
from infra.emulators.ociqueue.http import HttpRequest, json_response, read_request
from infra.emulators.ociqueue.service import Service

__all__ = ["Server"]

log = logging.getLogger(__name__)

STREAM_BYTES = 64 << 10  # the longest head of a request


class Server:
    """Listens until it is closed."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._listening: list[asyncio.Server] = []
        self._serving: set[asyncio.Task[None]] = set()

    async def listen(self, host: str, port: int, *, control: bool = False) -> int:
        """The port, which is any free one for 0."""

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            serving = asyncio.ensure_future(self._serve(reader, writer, control=control))
            self._serving.add(serving)
            serving.add_done_callback(self._serving.discard)
            await serving

        server = await asyncio.start_server(connected, host, port, limit=STREAM_BYTES)
        self._listening.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        for server in self._listening:
            server.close()
        self._service.drop_connections()
        if self._serving:
            await asyncio.wait(self._serving, timeout=1)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, control: bool) -> None:
        if not control:
            self._service.connections.add(writer)
        # One request is read ahead, so that the end of the connection shows while an answer is waited for.
        following = asyncio.create_task(read_request(reader, writer))
        try:
            while (request := await following) is not None:
                following = asyncio.create_task(read_request(reader, writer))
                if control:
                    writer.write(answer_control(self._service, request).render())
                elif not await self._answer(writer, request, following):
                    return
                await writer.drain()
        except OSError as error:
            log.info("a connection broke: %r", error)
        finally:
            following.cancel()
            self._service.connections.discard(writer)
            writer.close()

    async def _answer(
        self, writer: asyncio.StreamWriter, request: HttpRequest, following: asyncio.Task[HttpRequest | None]
    ) -> bool:
        """Whether the connection goes on. A client that hangs up while it waits takes no message with it."""
        working = asyncio.create_task(answer(self._service, request))
        await asyncio.wait({working, following}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done() and following.result() is None:
            working.cancel()
            return False
        try:
            response, fault = await working
        except Exception as error:
            log.exception("an answer failed")
            response, fault = json_response({"code": "InternalServerError", "message": repr(error)}, 500), None
        if fault is not None:
            match fault.action:
                case Action.DROP_BEFORE | Action.DROP_AFTER:
                    writer.transport.abort()
                    return False
                case Action.LOSE:
                    await following
                    return False
                case Action.DELAY:
                    await asyncio.sleep(fault.delay_seconds)
        writer.write(response.render())
        return True
