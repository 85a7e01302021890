"""The HTTP door of a process with the role `api`: the address is taken first, the door opened last."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from broker.bootstrap.threads import Threads
from broker.front import Front
from broker.intake.uploads import UPLOAD_BYTES_MAX
from broker.leasing import LeaseDoor
from broker.signing import KeyRing

if TYPE_CHECKING:
    from broker.api.server import Door

__all__ = ["DoorTerms", "HttpDoor"]


class DoorTerms(msgspec.Struct, frozen=True, kw_only=True):
    """Where the door listens, port 0 being any that is free. `names` are further host names that it answers to."""

    host: str = "127.0.0.1"
    port: int = 8470
    names: tuple[str, ...] = ()
    batch_lines_max: int | None = None
    upload_bytes_max: int = UPLOAD_BYTES_MAX


class HttpDoor:
    """Making one takes the address, before anything slow is started. Raises BrokerError when it can't be had.

    The web framework is loaded here, when there is a door: a process without one must not wait for it.
    """

    def __init__(self, terms: DoorTerms, data: Path) -> None:
        from broker.api.server import listen

        self._terms = terms
        self._data = data
        self._socket = listen(terms.host, terms.port)
        self._door: Door | None = None
        self.url = ""

    def open(self, front: Front, threads: Threads, lease_door: LeaseDoor | None, ring: KeyRing) -> None:
        """Returns when requests are served, and whoever looks into the data folder finds where.

        With a `lease_door` it is served too, to those whose key is in `ring`.
        """
        from broker.api.app import LOOPBACK_NAMES, make_app
        from broker.api.desk import Desk
        from broker.api.leases import LeaseCounter
        from broker.api.server import Door, load_or_create_token
        from broker.api.tokens import local_token
        from broker.sdk.http import remember_url

        terms = self._terms
        desk = Desk(front, terms.batch_lines_max, terms.upload_bytes_max)
        hosts = (*LOOPBACK_NAMES, terms.host, *terms.names)
        leases = LeaseCounter(lease_door, ring, front.clock) if lease_door else None
        app = make_app(desk, local_token(load_or_create_token(self._data)), hosts, leases)
        door = self._door = Door(app, self._socket)
        threads.spawn("door", door.run, lambda: door.is_stopping)
        door.wait_until_open()
        self.url = door.url
        remember_url(self._data, door.url)

    def as_a_worker(self, work: Callable[[], None]) -> None:
        """Run it the way that a worker's renewal goes. Raises BrokerError where that takes longer than workers wait."""
        if self._door is not None:
            self._door.as_a_worker(work)

    def close(self) -> None:
        """Take no more requests, and let those under way end within about a second."""
        if self._door is not None:
            self._door.stop()
        self._socket.close()
