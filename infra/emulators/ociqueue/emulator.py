"""The emulator as one object: runs in a thread of its own, for tests and for whoever embeds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infra.emulators.ociqueue.clock import Clock, ManualClock, SystemClock
from infra.emulators.ociqueue.control import state
from infra.emulators.ociqueue.journal import Journal
from infra.emulators.ociqueue.limits import Limits
from infra.emulators.ociqueue.queues import Description
from infra.emulators.ociqueue.server import Server
from infra.emulators.ociqueue.service import Service
from infra.emulators.ociqueue.signatures import PublicKey
from infra.emulators.serving.hosting import Hosted, Running

__all__ = ["COMPARTMENT", "Emulator", "Options", "serve"]

COMPARTMENT = "ocid1.compartment.oc1..emulator"
"""Where the queues are that the command line asks for."""


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


async def serve(options: Options) -> Running[Service]:
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


class Emulator(Hosted[Service]):
    """A running emulator; a context manager. Methods may be called from any thread."""

    def __init__(self, options: Options | None = None) -> None:
        super().__init__("ociqueue-emulator", options or Options(), serve)

    @property
    def endpoint(self) -> str:
        """For `service_endpoint` of both of the SDK's clients."""
        return f"http://{self._options.host}:{self.port}"

    # What to do to it.

    def create_queue(self, name: str, **settings: Any) -> str:  # noqa: ANN401 (of several types)
        """Its OCID. `settings` are fields of Description."""
        wanted = replace(Description(display_name=name, compartment_id=COMPARTMENT), **settings)
        return self.call(lambda service: service.queues.create(service.clock.now_ms(), wanted).queue.ocid)

    def delete_queue(self, ocid: str) -> None:
        self.call(lambda service: service.queues.delete(service.clock.now_ms(), ocid))

    def drop_connections(self) -> None:
        """Cut every connection without a word."""
        self.call(lambda service: service.drop_connections())

    def state(self) -> dict[str, Any]:
        return self.call(state)
