"""The emulator as one object: runs in a thread of its own, for tests and for whoever embeds it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from infra.emulators.ociqueue.clock import Clock, ManualClock, SystemClock
from infra.emulators.ociqueue.control import state
from infra.emulators.ociqueue.faults import Fault
from infra.emulators.ociqueue.journal import Journal
from infra.emulators.ociqueue.limits import Limits
from infra.emulators.ociqueue.queues import Description
from infra.emulators.ociqueue.server import Server
from infra.emulators.ociqueue.service import Service
from infra.emulators.ociqueue.signatures import PublicKey

__all__ = ["COMPARTMENT", "Emulator", "Options", "serve"]

COMPARTMENT = "ocid1.compartment.oc1..emulator"
"""Where the queues are that the command line asks for."""

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """How to run. A port of 0 is any free one, None none at all.

    `keys` are public keys by key id; without any, signatures need only have the right form. `work_seconds` is how
    long making or deleting a queue takes.
    """

    host: str = "127.0.0.1"
    port: int = 0
    control_port: int | None = 0
    keys: Mapping[str, PublicKey] = field(default_factory=dict)
    authenticates: bool = True
    journal: Path | None = None
    queues: tuple[Description, ...] = ()
    limits: Limits = field(default_factory=Limits)
    manual_clock: bool = False
    work_seconds: float = 0.0


@dataclass(frozen=True)
class Running:
    """What `serve` has set up: the service, and where it listens."""

    service: Service
    server: Server
    ports: dict[str, int]


async def serve(options: Options) -> Running:
    """Begin to listen on this event loop."""
    clock: Clock = ManualClock() if options.manual_clock else SystemClock()
    journal = None if options.journal is None else Journal(options.journal)
    service = Service(
        clock,
        options.limits,
        keeper=journal,
        keys=options.keys,
        authenticates=options.authenticates,
        work_ms=round(options.work_seconds * 1000),
    )
    if journal is not None:
        journal.restore(service.queues)
    present = {queue.description.display_name for queue in service.queues.listed(clock.now_ms())}
    for description in options.queues:
        if description.display_name not in present:
            service.queues.create(clock.now_ms(), description)
    server = Server(service)
    ports = {"main": await server.listen(options.host, options.port)}
    if options.control_port is not None:
        ports["control"] = await server.listen(options.host, options.control_port, control=True)
    return Running(service, server, ports)


class Emulator:
    """A running emulator; a context manager. Methods may be called from any thread."""

    def __init__(self, options: Options | None = None) -> None:
        self._options = options or Options()
        self._started = threading.Event()
        self._stopping: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: Running | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> Self:
        """Return when it listens. Started again after a stop, it has the same port."""
        self._started.clear()
        self._thread = threading.Thread(target=self._main, name="ociqueue-emulator", daemon=True)
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
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 (whatever it is belongs to whoever waits in start)
            self._error = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._running = await serve(self._options)
        self._started.set()
        await self._stopping.wait()
        await self._running.server.close()

    # Where it is.

    @property
    def _live(self) -> Running:
        if self._running is None:
            raise RuntimeError("the emulator isn't running")
        return self._running

    @property
    def port(self) -> int:
        return self._live.ports["main"]

    @property
    def control_port(self) -> int:
        return self._live.ports["control"]

    @property
    def endpoint(self) -> str:
        """For `service_endpoint` of both of the SDK's clients."""
        return f"http://{self._options.host}:{self.port}"

    # What to do to it.

    def call(self, action: Callable[[Service], T]) -> T:
        """Run it on the emulator's own thread."""
        if self._loop is None:
            raise RuntimeError("the emulator isn't running")

        async def run() -> T:
            return action(self._live.service)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)

    def create_queue(self, name: str, **settings: Any) -> str:  # noqa: ANN401 (of several types)
        """Its OCID. `settings` are fields of Description."""
        wanted = replace(Description(display_name=name, compartment_id=COMPARTMENT), **settings)
        return self.call(lambda service: service.queues.create(service.clock.now_ms(), wanted).queue.ocid)

    def delete_queue(self, ocid: str) -> None:
        self.call(lambda service: service.queues.delete(service.clock.now_ms(), ocid))

    def add_fault(self, fault: Fault) -> None:
        self.call(lambda service: service.faults.add(fault))

    def clear_faults(self) -> None:
        self.call(lambda service: service.faults.clear())

    def drop_connections(self) -> None:
        """Cut every connection without a word."""
        self.call(lambda service: service.drop_connections())

    def advance(self, seconds: float) -> None:
        """Move the clock on; only with `manual_clock=True`."""

        def move(service: Service) -> None:
            if not isinstance(service.clock, ManualClock):
                raise TypeError("the clock is the system's; start with manual_clock=True")
            service.clock.advance(seconds)

        self.call(move)

    def state(self) -> dict[str, Any]:
        return self.call(state)
