"""The served form: any set of the broker's roles in one process, on PostgreSQL and the lanes' own buses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec
import structlog

from broker.bootstrap.buses import Buses, fitted
from broker.bootstrap.jobs_bus import JobsBus
from broker.bootstrap.payloads import SWEEP_SECONDS, Payloads
from broker.bootstrap.roles import Role, Roles, Wiring
from broker.bootstrap.stages import Stages
from broker.bootstrap.stored_keys import StoredKeys, remember_signer
from broker.bus.envelope import KeyRing, KeyRole, Signer
from broker.clock import SetClock
from broker.database import instances, workers
from broker.database.connection import Connection
from broker.database.drivers.postgres.database import open_postgres
from broker.database.drivers.postgres.leadership import Leadership, Slot, take_slot
from broker.database.drivers.postgres.marks import forget_old_marks
from broker.database.drivers.postgres.wakeups import PostgresWakeups
from broker.database.known_lanes import remember_lanes
from broker.database.shared_health import SharedLaneHealth
from broker.domain.errors import BrokerError
from broker.domain.lane import Lane
from broker.domain.presence import PRESENCE_SECONDS
from broker.front import Front
from broker.keys import load_or_create_signer
from broker.leasing import LeaseDoor
from broker.ledger.checkpoints import CHECKPOINTS, CheckpointFile
from broker.ledger.partitions import ensure_partitions
from broker.ledger.prices import import_prices
from broker.rules.placement.policy import Policy
from broker.stages.keeper import KEEPER_SECONDS, Keeper
from broker.wakeups import Topic, Wakeups

__all__ = ["Served", "ServedTerms"]

_CLOCK_SECONDS = 5.0
_KEYS_SECONDS = 10.0
_BEAT_SECONDS = 2.0
_UPLOAD_KEPT_SECONDS = 3_600.0  # one that another process writes grows by the second
_GONE_US = 24 * 3_600 * 1_000_000

_log = structlog.get_logger(__name__)


class ServedTerms(msgspec.Struct, frozen=True, kw_only=True):
    """`data` holds keys, uploads and batches' files: one folder for all processes whose roles need it.

    `drain_seconds`: how long the stages may take to end what they are at. `jobs_bus_url`: of the bus that producers
    publish their jobs on, where there is one; `payloads_url`: of the store for what a lane's bus can't carry, likewise.
    `policy`: see `broker.catalog.policy`.
    """

    database_url: str
    data: Path
    roles: Collection[Role]
    pool_size: int = 8
    drain_seconds: float = 10.0
    jobs_bus_url: str | None = None
    payloads_url: str | None = None
    policy: Policy = Policy()


class Served:
    """These roles, from `start` until `stop`. Any number of such processes may share a database.

    Times are the database's, so that leases mean the same on every machine.
    """

    def __init__(self, terms: ServedTerms, lanes: Sequence[Lane]) -> None:
        self._terms = terms
        self._lanes = lanes = fitted(lanes, by_reference=terms.payloads_url is not None)
        name = "+".join(sorted(terms.roles)) if len(terms.roles) < len(Role) else "all roles"
        self.database = open_postgres(
            terms.database_url, pool_size=terms.pool_size, name=f"broker {name}", upgrade_schema=True
        )
        self.clock = SetClock()
        self._set_clock()
        self._wakeups = Wakeups()
        self._carrier = PostgresWakeups(terms.database_url, self._wakeups)
        self._keys = StoredKeys(self.database)
        self.front = Front(
            database=self.database,
            lanes=lanes,
            clock=self.clock,
            wakeups=self._wakeups,
            health=SharedLaneHealth(self.database, self.clock),
            folder=terms.data,
            live_slots=self._live_slots,
        )
        self._payloads = Payloads(terms.payloads_url, self.database) if terms.payloads_url else None
        self.door = LeaseDoor(self.database, self.clock, uploads=self._payloads)
        self._stages = Stages("the database's disk is full; nothing is lost: make room, and work goes on")
        self._keeper = Keeper(self.database, self.clock, self._stages.stopping.is_set)
        self._buses: Buses | None = None
        self._jobs_bus = JobsBus(terms.jobs_bus_url) if terms.jobs_bus_url else None
        self._held: list[Leadership | Slot] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def ring(self) -> KeyRing:
        """The keys in force, for whoever verifies."""
        return self._keys.ring

    @property
    def failure(self) -> BrokerError | None:
        """See `Stages`."""
        return self._stages.failure

    def start(self) -> None:
        """Be these roles."""
        signer = self._load_signer()
        self.database.write(lambda connection: import_prices(connection, self._lanes, self.clock()))
        self._keys.refresh()
        self._carrier.start()
        claim_check = self._payloads.claim_check(signer, self.ring, self.clock) if self._payloads else None
        self._buses = Buses(self._lanes, claim_check)
        roles = Roles(
            Wiring(
                front=self.front,
                known_lanes=self.database.write(lambda connection: remember_lanes(connection, self._lanes)),
                stages=self._stages,
                signer=signer,
                ring=self.ring,
                capacity=self._live_slots,
                publishers=self._buses.publishers,
                inboxes=self._buses.inboxes(),
                leads=self._leads,
                take_slot=self._take_slot,
                keep=self._keep,
                policy=self._terms.policy,
                upload_kept_seconds=_UPLOAD_KEPT_SECONDS,
                door_heard_us=lambda connection: workers.beat_us(connection, Role.API),
                jobs_bus=self._jobs_bus,
                checkpoint_places=[CheckpointFile(self._terms.data / CHECKPOINTS)],
            )
        )
        for role in Role:
            if role in self._terms.roles:
                roles.start(role)
        self._every(_CLOCK_SECONDS, "clock", self._set_clock)
        self._every(_KEYS_SECONDS, "keys", self._keys.refresh)
        if Role.API in self._terms.roles:
            self._every(_BEAT_SECONDS, "beat", self._beat)
        if Role.KEEPER in self._terms.roles and self._payloads:
            self._every(SWEEP_SECONDS, "payloads", self._payloads.sweep)
        if Role.KEEPER in self._terms.roles:
            self._every(PRESENCE_SECONDS, "instances", self._notice_lost)

    def stop(self) -> None:
        """End what each stage is at, and let go of all; harmless when it has ended."""
        if self._stages.stopping.is_set():
            return
        self.front.submitting.close()
        self._stages.stopping.set()
        self.front.wakeups.endings.announce_stop()
        self.front.wakeups.notify(*Topic)
        try:
            self._stages.join(self._terms.drain_seconds)
        finally:
            for held in self._held:
                held.close()
            self._carrier.stop()
            if self._buses:
                self._buses.close()
            if self._jobs_bus:
                self._jobs_bus.close()
            self.database.close()

    def _load_signer(self) -> Signer:
        folder = self._terms.data / "keys"
        load_or_create_signer(folder, "broker")
        return remember_signer(self.database, folder / "broker.key", KeyRole.BROKER, "broker", self.clock)

    def _live_slots(self, connection: Connection) -> Mapping[str, int]:
        return workers.live_slots(connection, self.clock() - int(PRESENCE_SECONDS * 1_000_000))

    def _leads(self, role: Role) -> Callable[[], bool]:
        leadership = Leadership(self._terms.database_url, role)
        self._held.append(leadership)
        return leadership.is_leader

    def _take_slot(self, role: Role) -> str:
        slot = take_slot(self.database, role)
        self._held.append(slot)
        return slot.name

    def _every(self, seconds: float, name: str, do: Callable[[], object]) -> None:
        """Do it now and then, for as long as the process lives."""
        self._stages.loop(name, lambda: bool(do()) and False, lambda: self._stages.stopping.wait(seconds))

    def _set_clock(self) -> None:
        asked_us = self.clock()
        now_us = self.database.read(workers.database_now_us)
        self.clock.set(now_us, asked_us, self.clock())

    def _beat(self) -> None:
        def work(connection: Connection) -> None:
            workers.beat(connection, Role.API, self.clock())

        self.database.write(work, durable=False, idempotent=True)

    def _notice_lost(self) -> None:
        count = self.database.write(lambda connection: instances.notice_lost(connection, self.clock()), idempotent=True)
        if count:
            _log.warning("instances_lost", count=count)

    def _keep(self) -> None:
        """The keeper's hourly round: next months' partitions, and nothing left of what is long gone or of no use."""

        def tidy(connection: Connection) -> None:
            workers.forget_long_gone(connection, self.clock() - _GONE_US)
            forget_old_marks(connection, self.clock())

        self.database.write(tidy)
        try:
            made = self.database.write(lambda connection: ensure_partitions(connection, self.clock()))
        except Exception as error:  # noqa: BLE001 (DEFAULT catches what no month takes; only their owner can make them)
            _log.warning("partitions_not_made", error=type(error).__name__, reason=str(error).partition("\n")[0][:200])
        else:
            _log.info("partitions_kept", made=made)
        self._keeper.step()
        self._stages.stopping.wait(KEEPER_SECONDS)
