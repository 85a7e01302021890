"""All that the emulator is while it runs, but for its sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from infra.emulators.ociqueue.clock import Clock
from infra.emulators.ociqueue.faults import Fault
from infra.emulators.ociqueue.http import HttpRequest
from infra.emulators.ociqueue.limits import Limits
from infra.emulators.ociqueue.queues import QueueKeeper, Queues
from infra.emulators.ociqueue.signatures import PublicKey
from infra.emulators.serving.faults import Faults

__all__ = ["Call", "Service"]


class Service:
    """Its queues, clock, faults and open connections. Without `keys` any signature of the right form will do."""

    def __init__(
        self,
        clock: Clock,
        limits: Limits,
        *,
        keeper: QueueKeeper | None = None,
        keys: Mapping[str, PublicKey] | None = None,
        authenticates: bool = True,
        work_ms: int = 0,
    ) -> None:
        self.clock = clock
        self.limits = limits
        self.queues = Queues(limits, keeper, work_ms)
        self.faults: Faults[Fault] = Faults()
        self.keys = dict(keys or {})
        self.authenticates = authenticates
        self.connections: set[asyncio.StreamWriter] = set()
        self.requests = 0

    def drop_connections(self) -> int:
        """Cut all without a word; how many."""
        open_now = list(self.connections)
        for writer in open_now:
            writer.transport.abort()
        return len(open_now)


class Call(NamedTuple):
    """One request of a client to the service."""

    service: Service
    request: HttpRequest

    def now_ms(self) -> int:
        return self.service.clock.now_ms()
