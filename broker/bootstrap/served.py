"""The served form: any set of the broker's roles in one process, on PostgreSQL and the lanes' own buses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import msgspec
import structlog

from broker.bootstrap.buses import Buses, fitted
from broker.bootstrap.door import DoorTerms, HttpDoor
from broker.bootstrap.jobs_bus import JobsBus
from broker.bootstrap.loop import Every, Loop
from broker.bootstrap.payloads import SWEEP_SECONDS, Payloads
from broker.bootstrap.roles import start_roles
from broker.bootstrap.stored_keys import StoredKeys, remember_signer
from broker.bootstrap.threads import Threads
from broker.bootstrap.wiring import Keys, LedgerSide, Peers, Role, Transport, Wiring
from broker.clock import SetClock
from broker.database import instances, workers
from broker.database.build_sightings import note_build
from broker.database.connection import Connection
from broker.database.drivers.postgres.database import open_postgres
from broker.database.drivers.postgres.leadership import Leadership, StreamLock, lock_stream
from broker.database.drivers.postgres.marks import forget_old_marks
from broker.database.drivers.postgres.wakeups import PostgresWakeups
from broker.database.history import INSTALLED
from broker.database.known_lanes import remember_lanes
from broker.database.shared_health import SharedLaneHealth
from broker.domain.lane import Lane
from broker.domain.presence import PRESENCE_SECONDS
from broker.front import Front
from broker.keys import load_or_create_signer
from broker.leasing import LeaseDoor
from broker.ledger.checkpoints import CHECKPOINTS, CheckpointFile
from broker.ledger.partitions import ensure_partitions
from broker.ledger.prices import import_prices
from broker.rules.placement.policy import Policy
from broker.signing import KeyRole, Signer
from broker.stages.keeper import Keeper
from broker.wakeups import Wakeups

__all__ = ["Served", "ServedTerms"]

_CLOCK_SECONDS = 5.0
_KEYS_SECONDS = 10.0
_BEAT_SECONDS = 2.0
_BUILD_SECONDS = 60.0
_UPLOAD_KEPT_SECONDS = 3_600.0  # one that another process writes grows by the second
_END_SECONDS = 3.0
"""How long a process may take to stop after one of its threads has ended: others wait to lead in its place."""
_GONE_US = 24 * 3_600 * 1_000_000

_log = structlog.get_logger(__name__)


class ServedTerms(msgspec.Struct, frozen=True, kw_only=True):
    """`data` holds keys, uploads and batches' files: one folder for all processes whose roles need it.

    `drain_seconds`: how long the stages may take to end what they are at. `jobs_bus_url`: of the bus that producers
    publish their jobs on, where there is one; `payloads_url`: of the store for what a lane's bus can't carry, likewise.
    `policy`: see `broker.catalog.policy`. `door`: where the role `api` listens.
    """

    database_url: str
    data: Path
    roles: Collection[Role]
    pool_size: int = 8
    drain_seconds: float = 10.0
    jobs_bus_url: str | None = None
    payloads_url: str | None = None
    policy: Policy = Policy()
    door: DoorTerms | None = None


class Served:
    """These roles, from `start` until `stop`. Any number of such processes may share a database.

    Times are the database's, so that leases mean the same on every machine. `on_death` is called when a thread has
    ended that should not: stop it then, and `check` says why. Raises BrokerError when the door's address is taken.
    """

    def __init__(self, terms: ServedTerms, lanes: Sequence[Lane], on_death: Callable[[], None] = lambda: None) -> None:
        self._terms = terms
        self._door = HttpDoor(terms.door, terms.data) if terms.door and Role.API in terms.roles else None
        self._lanes = lanes = fitted(lanes, by_reference=terms.payloads_url is not None)
        name = "+".join(sorted(terms.roles)) if len(terms.roles) < len(Role) else "all roles"
        self.database = open_postgres(terms.database_url, pool_size=terms.pool_size, name=f"broker {name}")
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
        self._lease_door = LeaseDoor(self.database, self.clock, parking=self._payloads)
        self._threads = Threads(
            self._wakeups,
            full_disk_sentence="the database's disk is full; nothing is lost: make room, and work goes on",
            end_seconds=_END_SECONDS,
            on_death=on_death,
        )
        self._keeper = Keeper(self.database, self.clock, self._threads.stopping.is_set)
        self._buses: Buses | None = None
        self._jobs_bus = JobsBus(terms.jobs_bus_url) if terms.jobs_bus_url else None
        self._slots: list[StreamLock] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where the door listens; empty where there is none."""
        return self._door.url if self._door else ""

    def check(self) -> None:
        """Raises BrokerError when a thread has ended that should not."""
        self._threads.check()

    def start(self) -> None:
        """Be these roles."""
        signer = self._load_signer()
        self.database.write(lambda connection: import_prices(connection, self._lanes, self.clock()))
        self._keys.refresh()
        self._carrier.start(self._spawn_carrying)
        start_roles(self._terms.roles, self._wiring(signer))
        for loop in self._chores():
            self._threads.start(loop)

    def stop(self) -> None:
        """End what each loop is at, and let go of all; harmless when it has ended."""
        if self._threads.stopping.is_set():
            return
        self._threads.stop()  # first: another process leads as soon as each loop has ended what it is at
        self.front.wakeups.endings.announce_stop()
        if self._door:
            self._door.close()
        self.front.submitting.close()
        try:
            self._threads.join(self._terms.drain_seconds)
        finally:
            for slot in self._slots:
                slot.close()
            self._carrier.stop()
            if self._buses:
                self._buses.close()
            if self._jobs_bus:
                self._jobs_bus.close()
            self.database.close()
            self._threads.end()

    def _spawn_carrying(self, name: str, run: Callable[[], None]) -> None:
        """Until the others have ended, whose last wake-ups it carries; `stop` waits for it then."""
        self._threads.spawn(name, run, lambda: self._carrier.is_stopping, outlasts=True)

    def _wiring(self, signer: Signer) -> Wiring:
        ring = self._keys.ring
        claim_check = self._payloads.claim_check(signer, ring, self.clock) if self._payloads else None
        self._buses = Buses(self._lanes, claim_check)
        return Wiring(
            front=self.front,
            threads=self._threads,
            keys=Keys(signer, ring),
            transport=Transport(
                publishers=self._buses.publishers, inboxes=self._buses.inboxes(), jobs_bus=self._jobs_bus
            ),
            ledger=LedgerSide(
                known_lanes=self.database.write(lambda connection: remember_lanes(connection, self._lanes)),
                checkpoint_places=[CheckpointFile(self._terms.data / CHECKPOINTS)],
            ),
            keep=self._keep,
            peers=Peers(
                leads=lambda role: Leadership(self._terms.database_url, role),
                take_slot=self._take_slot,
                door_heard_us=lambda connection: workers.beat_us(connection, Role.API),
                upload_kept_seconds=_UPLOAD_KEPT_SECONDS,
            ),
            policy=self._terms.policy,
            door=self._door,
            lease_door=self._lease_door,
        )

    def _chores(self) -> Iterator[Loop]:
        """What is done now and then for as long as the process lives, whoever leads."""
        yield Loop(name="clock", step=self._set_clock, rest=Every(_CLOCK_SECONDS))
        yield Loop(name="keys", step=self._keys.refresh, rest=Every(_KEYS_SECONDS))
        yield Loop(name="build", step=self._note_build, rest=Every(_BUILD_SECONDS))
        if Role.API in self._terms.roles:
            yield Loop(name="beat", step=self._beat, rest=Every(_BEAT_SECONDS))
        if Role.KEEPER in self._terms.roles:
            yield Loop(name="instances", step=self._notice_lost, rest=Every(PRESENCE_SECONDS))
            if self._payloads:
                yield Loop(name="payloads", step=self._payloads.sweep, rest=Every(SWEEP_SECONDS))

    def _load_signer(self) -> Signer:
        folder = self._terms.data / "keys"
        load_or_create_signer(folder, "broker")
        return remember_signer(self.database, folder / "broker.key", KeyRole.BROKER, "broker", self.clock)

    def _live_slots(self, connection: Connection) -> Mapping[str, int]:
        return workers.live_slots(connection, self.clock() - int(PRESENCE_SECONDS * 1_000_000))

    def _take_slot(self, role: Role) -> StreamLock:
        slot = lock_stream(self.database, role)
        self._slots.append(slot)
        return slot

    def _set_clock(self) -> None:
        asked_us = self.clock()
        now_us = self.database.read(workers.database_now_us)
        self.clock.set(now_us, asked_us, self.clock())

    def _beat(self) -> None:
        """By the way that leases are renewed: for the rescuer rests while nobody gets through there."""

        def work(connection: Connection) -> None:
            workers.beat(connection, Role.API, self.clock())

        def beat() -> None:
            self.database.write(work, durable=False, idempotent=True)

        if self._door:
            self._door.as_a_worker(beat)
        else:
            beat()

    def _note_build(self) -> None:
        """So that `broker db upgrade --contract` removes nothing that this process needs."""
        build = INSTALLED.build.needed
        self.database.write(
            lambda connection: note_build(connection, build, self.clock()), durable=False, idempotent=True
        )

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
