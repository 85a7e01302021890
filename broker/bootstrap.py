"""The only file that picks drivers and wires roles together."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import structlog

from broker.assembler import Assembler
from broker.bus.apps import InProcessWorker, start_in_process, worker_app
from broker.bus.envelope import KeyRing, Kind, Signer
from broker.bus.inbox import Delivery, Inbox
from broker.bus.publisher import Publisher
from broker.clock import Clock, utc_now_us
from broker.closer import Closer
from broker.database.connection import Connection
from broker.database.keys import remember_key
from broker.database.known_lanes import remember_lanes
from broker.database.migrating import upgrade
from broker.database.sqlite import SqliteDatabase, is_disk_full, is_passing, lock_folder
from broker.dispatcher import SHARDS_PER_STEP, Dispatcher
from broker.domain.errors import BrokerError, UsageError
from broker.domain.lane import Lane
from broker.health import LaneHealth
from broker.intake import Intake
from broker.keys import load_or_create_signer, public_bytes
from broker.leasing import LEASE_SECONDS, LeaseDoor
from broker.ledger.prices import import_prices
from broker.planner import Planner
from broker.recorder import Recorder
from broker.relay import ROWS_PER_STEP, Relay
from broker.rescuer import Rescuer
from broker.rules.sharding import body_bytes_max
from broker.submitting import Submitting
from broker.uploads import UploadReader
from broker.wakeups import Topic, Wakeups
from workers.engine import EngineError
from workers.engines import open_engine
from workers.runner import Deployment, ShardRunner

__all__ = ["DATABASE_FILE", "TENANT", "Embedded", "is_disk_full", "open_database"]

DATABASE_FILE = "broker.db"

TENANT = "default"
"""The one tenant of the embedded form."""

_POLL_SECONDS = 1.0
_EVENTS_PER_FLUSH = 64
_ASSEMBLER_REST_SECONDS = 0.1
_STOP_SECONDS = 4.0
_DRAIN_SECONDS = 0.1
_INBOX_SECONDS = 0.2  # how late the recorder may notice that it is to stop

_log = structlog.get_logger(__name__)


def open_database(data: Path) -> SqliteDatabase:
    """The database of a data folder, brought up to this program's schema."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = SqliteDatabase(data / DATABASE_FILE)
    try:
        upgrade(database.engine)
        database.use_write_ahead_log()
    except BaseException:
        database.close()
        raise
    return database


class Embedded:
    """All roles in one process, on SQLite and the in-memory bus, with one Celery worker for all lanes.

    Use it as a context manager: inside, it works; on leaving, what runs is handed back and everything ends,
    within about five seconds where the engines let go in time. `failure` holds what a stage could not get
    past, for the person to see.
    """

    def __init__(self, data: Path, lanes: Sequence[Lane], clock: Clock = utc_now_us) -> None:
        self._lock = lock_folder(data)
        self._data = data
        self.lanes = self._lanes = lanes
        self.clock = self._clock = clock
        self.uploads = data.absolute() / "uploads"
        self.batch_files = data.absolute() / "batches"
        self.database = open_database(data)
        self.wakeups = Wakeups()
        self.health = LaneHealth()
        self.failure: BrokerError | None = None
        models = {model for lane in lanes for model in lane.engine.models}
        largest = max(body_bytes_max(lane) for lane in lanes)
        self.intake = Intake(self.database, models, clock, self.wakeups, largest)
        self.submitting = Submitting(self.database, clock, self.wakeups, TENANT)
        self._bus_url = f"lanemem://embedded-{os.getpid()}-{id(self)}"
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._worker_side: _WorkerSide | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Bring up engines, stages and the worker. Raises BrokerError when an engine can't be brought up."""
        broker_signer, lane_signers, ring = self._load_keys()
        self.database.write(lambda connection: import_prices(connection, self._lanes, self._clock()))
        door = LeaseDoor(self.database, self._clock)
        self._worker_side = _WorkerSide(self._lanes, lane_signers, ring, door, self._bus_url, self._clock)
        self._worker_side.start_engines()
        self._start_stages(broker_signer, ring)
        self._worker_side.start_worker()

    def stop(self) -> None:
        """Hand back what runs, record it, and end; harmless when it has ended."""
        if self._stopping.is_set():
            return
        self.submitting.close()
        if self._worker_side:
            self._worker_side.stop()
        self._stopping.set()
        self.wakeups.endings.announce_stop()
        self.wakeups.notify(*Topic)
        try:
            deadline = time.monotonic() + _STOP_SECONDS
            for thread in self._threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            if self._worker_side:
                self._worker_side.close()
        finally:
            self.database.close()
            os.close(self._lock)

    def renew_soon(self) -> None:
        """Have the worker ask the lease door at once, where it hears what is to be cancelled."""
        if self._worker_side:
            self._worker_side.renew_soon()

    def _load_keys(self) -> tuple[Signer, dict[str, Signer], KeyRing]:
        folder = self._data / "keys"
        names = {"broker": (Kind.SHARD, "broker", "broker")}
        names |= {f"lane-{lane.name}": (Kind.EVENT, str(lane.name), "lane") for lane in self._lanes}
        signers: dict[str, Signer] = {}
        public = {}
        for name, (kind, owner, role) in names.items():
            signer, private = load_or_create_signer(folder, name)
            signers[owner] = signer
            public[signer.key_id] = (kind, owner, private.public_key())
            self._remember(signer.key_id, role, owner, public_bytes(private))
        return signers.pop("broker"), signers, KeyRing(public)

    def _remember(self, key_id: str, role: str, owner: str, public_key: bytes) -> None:
        def work(connection: Connection) -> None:
            remember_key(connection, key_id=key_id, role=role, owner=owner, public_key=public_key, now_us=self._clock())

        self.database.write(work)

    def _start_stages(self, signer: Signer, ring: KeyRing) -> None:
        database, lanes, clock, wakeups = self.database, self._lanes, self._clock, self.wakeups
        planner = Planner(database, lanes, clock, wakeups)
        dispatcher = Dispatcher(database, lanes, clock, wakeups, self.health)
        publisher = Publisher(self._bus_url)
        relay = Relay(database, lanes, {str(lane.name): publisher for lane in lanes}, signer, clock)
        known = database.write(lambda connection: remember_lanes(connection, lanes))
        recorder = Recorder(database=database, lanes=known, ring=ring, clock=clock, wakeups=wakeups, health=self.health)
        rescuer = Rescuer(database=database, lanes=known, clock=clock, wakeups=wakeups, lease_seconds=LEASE_SECONDS)
        closer = Closer(database=database, lanes=lanes, clock=clock, wakeups=wakeups)
        assembler = Assembler(database, clock)
        reader = UploadReader(database, self.uploads, self.intake.read_batch, self._stopping.is_set)
        reader.sweep()
        rescuer.recover()
        self._loop("planner", planner.step, lambda: wakeups.wait(Topic.PLANNER, _POLL_SECONDS))
        # After less than a full step there is nothing more until someone says so: looking would be in the way.
        self._loop(
            "dispatcher", lambda: dispatcher.step() >= SHARDS_PER_STEP, lambda: self._wait_for_dispatch(dispatcher)
        )
        self._loop("relay", lambda: relay.step() >= ROWS_PER_STEP, lambda: wakeups.wait(Topic.RELAY, _POLL_SECONDS))
        self._loop("rescuer", rescuer.step, lambda: self._stopping.wait(_POLL_SECONDS))
        self._loop("closer", closer.step, lambda: wakeups.wait(Topic.CLOSER, _POLL_SECONDS))
        self._loop("upload-reader", reader.step, lambda: wakeups.wait(Topic.READER, _POLL_SECONDS))
        self._loop("assembler", assembler.step, self._wait_for_endings)
        self._spawn("submitting", self.submitting.run)
        self._spawn("recorder", lambda: self._record(recorder))

    def _wait_for_dispatch(self, dispatcher: Dispatcher) -> None:
        self.wakeups.wait(Topic.DISPATCHER, dispatcher.seconds_until_due(_POLL_SECONDS))

    def _wait_for_endings(self) -> None:
        """A batch ends once; looking after each of its flushes would cost more than the flush."""
        self._stopping.wait(_ASSEMBLER_REST_SECONDS)
        self.wakeups.wait(Topic.ASSEMBLER, _POLL_SECONDS)

    def _loop(self, name: str, step: Callable[[], object], wait: Callable[[], object]) -> None:
        """A stage's thread: work while there is work, then wait. A step that fails is tried again after a pause."""

        def run() -> None:
            while not self._stopping.is_set():
                if not self._guarded(name, step):
                    wait()

        self._spawn(name, run)

    def _guarded(self, name: str, step: Callable[[], object]) -> object:
        try:
            return step()
        except BrokerError as error:
            _log.warning("stage_stuck", stage=name, reason=str(error))
            self.failure = error
            self._stopping.wait(_POLL_SECONDS)
        except Exception as error:  # noqa: BLE001 (a stage outlives whatever one step meets)
            self._note_failure(name, error)
            self._stopping.wait(_POLL_SECONDS)
        return None

    def _note_failure(self, stage: str, error: Exception) -> None:
        _log.exception("stage_failed", stage=stage)
        if is_disk_full(error):
            self.failure = BrokerError(
                f"the disk that holds {self._data} is full; nothing is lost: make room and start again to go on"
            )

    def _record(self, recorder: Recorder) -> None:
        """The recorder's thread. Once stopping, it goes on until the worker's last events are in."""
        inbox = Inbox(self._bus_url, [lane.events_queue for lane in self._lanes], _EVENTS_PER_FLUSH)
        try:
            while True:
                stopping = self._stopping.is_set()
                deliveries = inbox.receive(_EVENTS_PER_FLUSH, _DRAIN_SECONDS if stopping else _INBOX_SECONDS)
                while deliveries and not self._recorded(recorder, deliveries):
                    if self._stopping.wait(_POLL_SECONDS):
                        break
                else:
                    inbox.acknowledge(deliveries)
                if stopping and not deliveries:
                    return
        finally:
            inbox.close()

    def _recorded(self, recorder: Recorder, deliveries: Sequence[Delivery]) -> bool:
        try:
            recorder.record(deliveries)
        except Exception as error:  # noqa: BLE001 (likewise; unacknowledged, the events come again)
            self._note_failure("recorder", error)
            if is_passing(error):
                return False
            # One event that can't be recorded must not hold up the others: alone, it is left out, and said.
            if len(deliveries) > 1:
                return all(self._recorded(recorder, [delivery]) for delivery in deliveries)
            _log.error("event_left_out", queue=deliveries[0].queue, error=type(error).__name__)
        return True

    def _spawn(self, name: str, run: Callable[[], None]) -> None:
        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()


class _WorkerSide:
    """The worker of the embedded form: every lane's engine, one event loop, one Celery worker on all queues."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        signers: dict[str, Signer],
        ring: KeyRing,
        door: LeaseDoor,
        bus_url: str,
        clock: Clock,
    ) -> None:
        self._lanes = lanes
        self._bus_url = bus_url
        self._publisher = Publisher(bus_url)
        self._loop = asyncio.new_event_loop()
        self._loop_thread = threading.Thread(target=self._loop.run_forever, name="engines", daemon=True)
        try:
            self._deployments = {
                str(lane.name): Deployment(lane, open_engine(lane.engine), self._publisher, signers[lane.name])
                for lane in lanes
            }
        except ValueError as error:
            raise UsageError(str(error)) from None
        self._runner = ShardRunner(
            worker_id=f"{socket.gethostname()}-{os.getpid()}",
            deployments=self._deployments,
            ring=ring,
            door=door,
            loop=self._loop,
            clock=clock,
        )
        self._worker: InProcessWorker | None = None

    def start_engines(self) -> None:
        self._loop_thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._start_all(), self._loop).result()
        except EngineError as error:
            raise BrokerError(error.message) from None

    def start_worker(self) -> None:
        queues = [lane.shards_queue for lane in self._lanes]
        # A queued shard waits for its lane's slot inside its thread, so that no lane holds up another's.
        concurrency = 2 * sum(lane.slots for lane in self._lanes)
        app = worker_app("embedded", self._bus_url, queues, concurrency, run_shard=self._runner.run)
        self._worker = start_in_process(app)

    def stop(self) -> None:
        """Hand back what runs and take nothing more."""
        self._runner.preempt(interrupted=True)
        if self._worker:
            self._worker.stop(_STOP_SECONDS)

    def renew_soon(self) -> None:
        """See `ShardRunner.renew_soon`."""
        self._runner.renew_soon()

    def close(self) -> None:
        """End the engines."""
        try:
            asyncio.run_coroutine_threadsafe(self._stop_all(), self._loop).result(_STOP_SECONDS)
        except TimeoutError:
            _log.warning("engines_left_running")  # they end with this process
        self._publisher.close()
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _start_all(self) -> None:
        await asyncio.gather(*(deployment.engine.start() for deployment in self._deployments.values()))

    async def _stop_all(self) -> None:
        await asyncio.gather(
            *(deployment.engine.stop() for deployment in self._deployments.values()), return_exceptions=True
        )
