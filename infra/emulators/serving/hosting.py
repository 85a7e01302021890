"""An emulator as one object: runs in a thread of its own, for tests and for whoever embeds it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, Self, TypeVar

from infra.emulators.serving.faults import Order
from infra.emulators.serving.ports import Server, Service, manual_clock_of

__all__ = ["Hosted", "Running"]

S = TypeVar("S", bound=Service)
R = TypeVar("R")


@dataclass(frozen=True)
class Running(Generic[S]):
    """What has been set up: the service, and where it listens, by the port's name."""

    service: S
    server: Server
    ports: dict[str, int]


class Hosted(Generic[S]):
    """A running emulator; a context manager. Methods may be called from any thread.

    `options` is a frozen dataclass with a field `port`; `serve` begins to listen by it on the event loop it runs on.
    """

    def __init__(self, name: str, options: Any, serve: Callable[[Any], Awaitable[Running[S]]]) -> None:  # noqa: ANN401 (each emulator's own options)
        self._name = name
        self._options = options
        self._serve = serve
        self._started = threading.Event()
        self._stopping: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: Running[S] | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Return when it listens. Started again after a stop, it has the same port."""
        self._started.clear()
        self._thread = threading.Thread(target=self._main, name=self._name, daemon=True)
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        self._options = replace(self._options, port=self.port)
        return self

    def stop(self) -> None:
        """Cut all connections and free the ports. What no journal keeps is lost."""
        if self._thread is not None and self._loop is not None and self._stopping is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()
        self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:  # noqa: BLE001 (whatever it is belongs to whoever waits in start)
            self._error = error
        finally:
            self._started.set()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._running = await self._serve(self._options)
        self._started.set()
        await self._stopping.wait()
        await self._running.server.close()

    # Where it is.

    @property
    def running(self) -> Running[S]:
        """What was set up. Raises RuntimeError before the first start."""
        if self._running is None:
            raise RuntimeError("the emulator isn't running")
        return self._running

    @property
    def port(self) -> int:
        return self.running.ports["main"]

    @property
    def control_port(self) -> int:
        return self.running.ports["control"]

    # What to do to it.

    def call(self, action: Callable[[S], R]) -> R:
        """Run it on the emulator's own thread."""
        if self._loop is None:
            raise RuntimeError("the emulator isn't running")

        async def run() -> R:
            return action(self.running.service)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)

    def add_fault(self, fault: Order) -> None:
        self.call(lambda service: service.faults.add(fault))

    def clear_faults(self) -> None:
        self.call(lambda service: service.faults.clear())

    def advance(self, seconds: float) -> None:
        """Move the clock on; only with `manual_clock=True`."""
        self.call(lambda service: manual_clock_of(service, "manual_clock=True").advance(seconds))
