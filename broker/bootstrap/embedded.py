"""The embedded form: all roles in one process, on SQLite and the in-memory bus."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import structlog

from broker.bootstrap.buses import in_one_process
from broker.bootstrap.data_folder import open_database, own_files
from broker.bootstrap.door import DoorTerms, HttpDoor
from broker.bootstrap.loop import Loop
from broker.bootstrap.roles import new_rescuer, start_roles
from broker.bootstrap.threads import Threads
from broker.bootstrap.wiring import Keys, LedgerSide, Role, Transport, Wiring
from broker.bootstrap.worker_side import WorkerSide, new_worker_id
from broker.bus.inbox import Inbox
from broker.bus.publisher import Publisher
from broker.clock import Clock, utc_now_us
from broker.database.connection import Connection
from broker.database.drivers.sqlite.database import lock_folder
from broker.database.keys import remember_key
from broker.database.known_lanes import remember_lanes
from broker.database.noted_health import NotedLaneHealth
from broker.domain.errors import BrokerError, ErrorCode
from broker.domain.lane import Lane
from broker.front import Front
from broker.keys import load_or_create_signer, public_bytes
from broker.leasing import LeaseDoor
from broker.ledger.prices import import_prices
from broker.rules.placement.policy import Policy
from broker.signing import KeyRing, KeyRole, PublicKey, Signer
from broker.stages.keeper import Keeper
from broker.wakeups import Wakeups
from workers.engine import EngineError

__all__ = ["Embedded"]

_log = structlog.get_logger(__name__)

_STOP_SECONDS = 4.0
_END_SECONDS = 8.0
"""How long the process may take to stop after one of its threads has ended: as long as handing back may take."""


class Embedded:
    """All roles in one process, on SQLite and the in-memory bus, with one Celery worker for all lanes.

    Use it as a context manager: inside, it works; on leaving, what runs is handed back and everything ends,
    within about five seconds where the engines let go in time. `failure` holds what a stage could not get
    past, for the person to see. `policy`: see `broker.catalog.policy`. With a `door` it listens there. `on_death` is
    called when a thread has ended that should not: leave then, and `check` says why. `say` gets a sentence when it is
    known that an engine isn't ready, why, and that it is; from any thread.
    """

    def __init__(
        self,
        data: Path,
        lanes: Sequence[Lane],
        clock: Clock = utc_now_us,
        *,
        policy: Policy | None = None,
        door: DoorTerms | None = None,
        on_death: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        is_new = not data.exists()
        self._lock = lock_folder(data)
        try:
            self._door = HttpDoor(door, data) if door else None
        except BaseException:
            if is_new:
                _forget_folder(data)
            os.close(self._lock)
            raise
        self.data = data
        self._lanes = lanes = in_one_process(lanes)
        self._policy = policy or Policy()
        self.database = open_database(data)
        self.health = NotedLaneHealth(self.database, clock)
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
        full = f"the disk that holds {data} is full; nothing is lost: make room and start again to go on"
        self._threads = Threads(
            self.front.wakeups,
            full_disk_sentence=full,
            end_seconds=_END_SECONDS,
            on_death=on_death,
        )
        self._worker_side: WorkerSide | None = None
        self._say = say
        self._starting: dict[str, str] = {}
        self._is_leaving = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def failure(self) -> BrokerError | None:
        """See `Threads`."""
        return self._threads.failure

    @property
    def url(self) -> str:
        """Where the door listens; empty where there is none."""
        return self._door.url if self._door else ""

    def own_files(self) -> list[Path]:
        """The files in the data folder that nobody else may write."""
        return own_files(self.data)

    def check(self) -> None:
        """Raises BrokerError when a thread has ended that should not."""
        self._threads.check()

    def start(self) -> None:
        """Bring up engines, stages and the worker. A lane rests while its engine isn't ready, however long that takes.

        Raises BrokerError where a lane's settings keep its engine from ever being ready.
        """
        self.health.begin()
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
        self._worker_side.start_engines(self._note_engine)
        wiring = self._wiring(bus_url, Keys(broker_signer, ring))
        new_rescuer(self.front, wiring.ledger, wiring.peers).recover()
        start_roles([role for role in Role if role is not Role.API], wiring)
        self._worker_side.start_worker()
        self._threads.start(Loop(name="watch", step=self._watch))
        start_roles([Role.API], wiring)

    def stop(self) -> None:
        """Hand back what runs, record it, and end; harmless when it has ended."""
        if self._is_leaving:
            return
        self._is_leaving = True
        self.front.wakeups.endings.announce_stop()
        if self._door:
            self._door.close()
        self.front.submitting.close()
        if self._worker_side:
            self._worker_side.stop(interrupted=True)
        self._threads.stop()
        self.front.wakeups.endings.announce_stop()
        try:
            self._threads.join(_STOP_SECONDS)
            if self._worker_side:
                self._worker_side.close()
        finally:
            self.database.close()
            os.close(self._lock)
            self._threads.end()

    def _renew_soon(self) -> None:
        if self._worker_side:
            self._worker_side.renew_soon()

    def _note_engine(self, lane: str, error: EngineError | None) -> None:
        """Told time and again while it isn't ready, so that the lane rests for as long."""
        said = self._starting.get(lane)
        if error is None:
            self.health.success(lane)
            if self._starting.pop(lane, None):
                self._say(f"Lane {lane} is ready.")
            return
        is_wrong = error.code is ErrorCode.ENGINE_MISCONFIGURED
        self.health.fault(lane, ErrorCode.ENGINE_MISCONFIGURED if is_wrong else ErrorCode.ENGINE_STARTING)
        if error.message != said and not (is_wrong and said is None):  # at the start that is said by who then ends
            self._starting[lane] = error.message
            _log.warning("engine_starting", lane=lane, reason=error.message)
            self._say(f"Lane {lane} is starting: {error.message}")

    def _watch(self) -> None:
        """What has threads of its own: the database, and Celery, which ends its worker when it can't recover."""
        if self._is_leaving or self._threads.death is not None:
            return
        if not self.database.is_running:
            self._threads.report_end("database-writer", None)
        elif self._worker_side and not self._worker_side.is_running:
            self._threads.report_end("worker-embedded", None)

    def _load_keys(self) -> tuple[Signer, dict[str, Signer], KeyRing]:
        folder = self.data / "keys"
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

    def _wiring(self, bus_url: str, keys: Keys) -> Wiring:
        publisher = Publisher(bus_url)
        events = [lane.events_queue for lane in self._lanes]
        return Wiring(
            front=self.front,
            threads=self._threads,
            keys=keys,
            transport=Transport(
                publishers=dict.fromkeys((str(lane.name) for lane in self._lanes), publisher),
                inboxes=[lambda prefetch: Inbox(bus_url, events, prefetch)],
            ),
            ledger=LedgerSide(
                known_lanes=self.database.write(lambda connection: remember_lanes(connection, self._lanes))
            ),
            keep=Keeper(self.database, self._clock, self._threads.stopping.is_set).step,
            policy=self._policy,
            door=self._door,
        )


def _forget_folder(data: Path) -> None:
    """Made a moment ago for nothing."""
    with suppress(OSError):
        (data / "broker.lock").unlink()
        data.rmdir()
