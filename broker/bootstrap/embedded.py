"""The embedded form: all roles in one process, on SQLite and the in-memory bus."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from broker.bootstrap.data_folder import DATABASE_FILE, open_database
from broker.bootstrap.roles import Role, Roles, Wiring
from broker.bootstrap.stages import Stages
from broker.bootstrap.worker_side import WorkerSide, new_worker_id
from broker.bus.envelope import KeyRing, KeyRole, PublicKey, Signer
from broker.bus.inbox import Inbox
from broker.bus.publisher import Publisher
from broker.clock import Clock, utc_now_us
from broker.database.connection import Connection
from broker.database.drivers.sqlite.database import lock_folder
from broker.database.keys import remember_key
from broker.database.known_lanes import remember_lanes
from broker.domain.errors import BrokerError
from broker.domain.lane import Lane
from broker.front import Front
from broker.health import LaneHealth
from broker.keys import load_or_create_signer, public_bytes
from broker.leasing import LeaseDoor
from broker.ledger.prices import import_prices
from broker.stages.keeper import KEEPER_SECONDS, Keeper
from broker.wakeups import Topic, Wakeups

__all__ = ["DATABASE_FILE", "Embedded", "open_database"]

_STOP_SECONDS = 4.0


class Embedded:
    """All roles in one process, on SQLite and the in-memory bus, with one Celery worker for all lanes.

    Use it as a context manager: inside, it works; on leaving, what runs is handed back and everything ends,
    within about five seconds where the engines let go in time. `failure` holds what a stage could not get
    past, for the person to see. `shares` limits suppliers, see `broker.catalog.shares`.
    """

    def __init__(
        self, data: Path, lanes: Sequence[Lane], clock: Clock = utc_now_us, *, shares: Mapping[str, float] | None = None
    ) -> None:
        self._lock = lock_folder(data)
        self._data = data
        self._lanes = lanes
        self._shares = shares or {}
        self.database = open_database(data)
        self.health = LaneHealth()
        self.front = Front(
            database=self.database,
            lanes=lanes,
            clock=clock,
            wakeups=Wakeups(),
            health=self.health,
            folder=data,
            renew_soon=self._renew_soon,
        )
        self._clock = clock
        self._stages = Stages(
            f"the disk that holds {data} is full; nothing is lost: make room and start again to go on"
        )
        self._worker_side: WorkerSide | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def failure(self) -> BrokerError | None:
        """See `Stages`."""
        return self._stages.failure

    def start(self) -> None:
        """Bring up engines, stages and the worker. Raises BrokerError when an engine can't be brought up."""
        broker_signer, lane_signers, ring = self._load_keys()
        self.database.write(lambda connection: import_prices(connection, self._lanes, self._clock()))
        bus_url = f"lanemem://embedded-{os.getpid()}-{id(self)}"
        self._worker_side = WorkerSide(
            name="embedded",
            lanes=self._lanes,
            signers=lane_signers,
            ring=ring,
            door=LeaseDoor(self.database, self._clock),
            bus_url=bus_url,
            clock=self._clock,
            worker_id=new_worker_id(),
        )
        self._worker_side.start_engines()
        self._start_stages(bus_url, broker_signer, ring)
        self._worker_side.start_worker()

    def stop(self) -> None:
        """Hand back what runs, record it, and end; harmless when it has ended."""
        if self._stages.stopping.is_set():
            return
        self.front.submitting.close()
        if self._worker_side:
            self._worker_side.stop(interrupted=True)
        self._stages.stopping.set()
        self.front.wakeups.endings.announce_stop()
        self.front.wakeups.notify(*Topic)
        try:
            self._stages.join(_STOP_SECONDS)
            if self._worker_side:
                self._worker_side.close()
        finally:
            self.database.close()
            os.close(self._lock)

    def _renew_soon(self) -> None:
        if self._worker_side:
            self._worker_side.renew_soon()

    def _keep(self) -> None:
        Keeper(self.database, self._clock, self._stages.stopping.is_set).step()
        self._stages.stopping.wait(KEEPER_SECONDS)

    def _load_keys(self) -> tuple[Signer, dict[str, Signer], KeyRing]:
        folder = self._data / "keys"
        names = {"broker": (KeyRole.BROKER, "broker")}
        names |= {f"lane-{lane.name}": (KeyRole.LANE, str(lane.name)) for lane in self._lanes}
        signers: dict[str, Signer] = {}
        public = {}
        for name, (role, owner) in names.items():
            signer, private = load_or_create_signer(folder, name)
            signers[owner] = signer
            public[signer.key_id] = PublicKey(role, owner, private.public_key())
            self._remember(signer.key_id, role, owner, public_bytes(private))
        return signers.pop("broker"), signers, KeyRing(public)

    def _remember(self, key_id: str, role: str, owner: str, public_key: bytes) -> None:
        def work(connection: Connection) -> None:
            remember_key(connection, key_id=key_id, role=role, owner=owner, public_key=public_key, now_us=self._clock())

        self.database.write(work)

    def _start_stages(self, bus_url: str, signer: Signer, ring: KeyRing) -> None:
        publisher = Publisher(bus_url)
        capacity = {str(lane.name): lane.slots for lane in self._lanes}
        events = [lane.events_queue for lane in self._lanes]
        roles = Roles(
            Wiring(
                front=self.front,
                known_lanes=self.database.write(lambda connection: remember_lanes(connection, self._lanes)),
                stages=self._stages,
                signer=signer,
                ring=ring,
                capacity=lambda _connection: capacity,
                publishers=dict.fromkeys(capacity, publisher),
                inboxes=[lambda prefetch: Inbox(bus_url, events, prefetch)],
                leads=lambda _role: lambda: True,
                take_slot=lambda role: f"{role}-0",
                keep=self._keep,
                shares=self._shares,
            )
        )
        roles.new_rescuer().recover()
        for role in Role:
            roles.start(role)
