"""The emulator as one object: runs in a thread of its own, for tests and for whoever embeds it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.emulators.servicebus.admin.control import state
from infra.emulators.servicebus.clock import Clock, ManualClock, SystemClock
from infra.emulators.servicebus.journal import Journal
from infra.emulators.servicebus.queues.description import QueueDescription
from infra.emulators.servicebus.server import Server
from infra.emulators.servicebus.service import Peer, Service
from infra.emulators.servicebus.tls import make_certificate, server_context
from infra.emulators.serving.hosting import Hosted, Running

__all__ = ["KEY", "KEY_NAME", "Emulator", "Options", "serve"]

KEY_NAME = "RootManageSharedAccessKey"
KEY = "SAS_KEY_VALUE"
"""What Microsoft's own emulator uses; no secret, since whoever may connect may read it here."""


@dataclass(frozen=True)
class Options:
    """How to run. A port of 0 is any free one, None none at all; every port but the control port speaks everything."""

    host: str = "127.0.0.1"
    port: int = 0
    tls_port: int | None = None
    admin_port: int | None = None
    control_port: int | None = 0
    keys: Mapping[str, str] = field(default_factory=lambda: {KEY_NAME: KEY})
    tls: bool = True
    certificate: Path | None = None
    private_key: Path | None = None
    journal: Path | None = None
    queues: Mapping[str, QueueDescription] = field(default_factory=dict)
    auto_create: bool = False
    strict: bool = False
    manual_clock: bool = False
    first_delivery_id: int = 1 << 20
    idle_seconds: float = 240.0


@dataclass(frozen=True)
class RunningBus(Running[Service]):
    """With what a TLS client must trust."""

    certificate: Path | None


async def serve(options: Options, folder: Path) -> RunningBus:
    """Begin to listen on this event loop. `folder` takes the certificate if one must be made."""
    clock: Clock = ManualClock() if options.manual_clock else SystemClock()
    journal = None if options.journal is None else Journal(options.journal)
    service = Service(
        clock,
        options.keys,
        keeper=journal,
        strict=options.strict,
        auto_create=options.auto_create,
        first_delivery_id=options.first_delivery_id,
        idle_seconds=options.idle_seconds,
    )
    if journal is not None:
        journal.restore(service.namespace, clock.now_ms())
        service.resume()
    for name, description in options.queues.items():
        if service.namespace.entry(name) is None:
            service.namespace.create(clock.now_ms(), name, description)
    certificate, key = options.certificate, options.private_key
    if options.tls and (certificate is None or key is None):
        certificate, key = await asyncio.to_thread(make_certificate, folder)
    context = server_context(certificate, key) if options.tls and certificate and key else None
    server = Server(service, context)
    wanted = {"main": options.port, "tls": options.tls_port, "admin": options.admin_port}
    ports = {name: server.listen(options.host, port) for name, port in wanted.items() if port is not None}
    if options.control_port is not None:
        ports["control"] = server.listen(options.host, options.control_port, control=True)
    return RunningBus(service, server, ports, certificate if options.tls else None)


class Emulator(Hosted[Service]):
    """A running emulator; a context manager. Methods may be called from any thread."""

    def __init__(self, options: Options | None = None) -> None:
        self._certificate: Path | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="servicebus-emulator-")
        super().__init__("servicebus-emulator", options or Options(), self._serve_bus)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._folder.cleanup()

    async def _serve_bus(self, options: Options) -> RunningBus:
        self._certificate = (running := await serve(options, Path(self._folder.name))).certificate
        return running

    @property
    def certificate(self) -> Path | None:
        """What a TLS client must trust."""
        return self._certificate

    @property
    def connection_string(self) -> str:
        """For unmodified SDKs, which take `UseDevelopmentEmulator` to mean AMQP without TLS on this port."""
        return connection_string(self._options, self.port)

    # What to do to it.

    def create_queue(self, name: str, description: QueueDescription | None = None) -> None:
        wanted = description or QueueDescription()
        self.call(lambda service: service.namespace.create(service.clock.now_ms(), name, wanted))

    def delete_queue(self, name: str) -> None:
        self.call(lambda service: service.delete(name))

    def drop_connections(self) -> None:
        """Cut every connection without a word."""
        self._each(lambda peer: peer.abort())

    def close_connections(self, condition: str = "amqp:connection:forced") -> None:
        self._each(lambda peer: peer.close(condition, "closed on order"))

    def detach_links(self, entity: str = "*", condition: str = "amqp:link:detach-forced") -> None:
        self._each(lambda peer: peer.detach_links(entity, condition, "detached on order"))

    def _each(self, action: Callable[[Peer], object]) -> None:
        def act(service: Service) -> None:
            for peer in list(service.peers):
                action(peer)

        self.call(act)

    def state(self) -> dict[str, Any]:
        return self.call(state)


def connection_string(options: Options, port: int) -> str:
    name, key = next(iter(options.keys.items()), (KEY_NAME, KEY))
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"Endpoint=sb://{host}:{port};SharedAccessKeyName={name};SharedAccessKey={key};UseDevelopmentEmulator=true;"
