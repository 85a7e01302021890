"""The broker's roles, each a stage or two on the same database: all in one process, or any set of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import assert_never

import msgspec

from broker.bootstrap.jobs_bus import JobsBus
from broker.bootstrap.stages import POLL_SECONDS, Stages
from broker.bus.envelope import KeyRing, Signer
from broker.bus.inbox import Inbox
from broker.database.connection import Connection
from broker.database.lane_work import Capacity
from broker.domain.lane import Lane
from broker.front import Front
from broker.intake.bus_jobs import Receiving
from broker.intake.uploads import UploadReader
from broker.leasing import LEASE_SECONDS
from broker.ledger.checkpoints import CheckpointPlace
from broker.rules.placement.policy import Policy
from broker.stages.announcer import Announcer
from broker.stages.assembler import Assembler
from broker.stages.closer import Closer
from broker.stages.dispatcher import SHARDS_PER_STEP, Dispatcher
from broker.stages.notifier import Notifier
from broker.stages.planner import Planner
from broker.stages.recorder import Recorder
from broker.stages.relay import ROWS_PER_STEP, Relay, ShardPublisher
from broker.stages.rescuer import Rescuer
from broker.stages.sealer import SEAL_SECONDS, Sealer
from broker.wakeups import Topic

__all__ = ["Role", "Roles", "Wiring"]

_ASSEMBLER_REST_SECONDS = 0.1
_DISPATCHER_REST_SECONDS = 0.02


class Role(StrEnum):
    """What a process may be. All but `api` and `recorder` have one leader at a time; the others stand by."""

    API = "api"
    INTAKE = "intake"
    PLANNER = "planner"
    DISPATCHER = "dispatcher"
    RELAY = "relay"
    RECORDER = "recorder"
    RESCUER = "rescuer"
    CLOSER = "closer"
    ASSEMBLER = "assembler"
    NOTIFIER = "notifier"
    SEALER = "sealer"
    KEEPER = "keeper"


class Wiring(msgspec.Struct, frozen=True, kw_only=True):
    """What roles are made from. `known_lanes` are all that were ever configured, the present ones among them.

    `publishers` has one for each lane's bus; `inboxes` opens, for each bus, the events queues on it, given how
    many messages to prefetch; `door_heard_us` says when the lease door last answered, where it is elsewhere;
    `upload_kept_seconds` is how old an upload without a batch must be to be thrown away;
    without a `jobs_bus` no jobs come over a bus, and the notifier has nobody to tell; `checkpoint_places` are where
    the sealer publishes, and without any it seals nothing; `policy` is the planner's and the dispatcher's;
    `take_slot` gives a role the name of a stream that no other process writes.
    """

    front: Front
    known_lanes: Sequence[Lane]
    stages: Stages
    signer: Signer
    ring: KeyRing
    capacity: Capacity
    publishers: Mapping[str, ShardPublisher]
    inboxes: Sequence[Callable[[int], Inbox]]
    leads: Callable[[Role], Callable[[], bool]]
    take_slot: Callable[[Role], str]
    keep: Callable[[], object]
    policy: Policy = Policy()
    upload_kept_seconds: float = 0.0
    door_heard_us: Callable[[Connection], int | None] | None = None
    jobs_bus: JobsBus | None = None
    checkpoint_places: Sequence[CheckpointPlace] = ()


class Roles:
    """Starts roles."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._front = wiring.front
        self._submits = False

    def start(self, role: Role) -> None:
        """Have this process be it, from now until its stages are stopped."""
        front = self._front
        match role:
            case Role.API:
                self._submit()
            case Role.INTAKE:
                self._start_intake()
                self._start_receiving()
            case Role.PLANNER:
                planner = Planner(
                    front.database,
                    front.lanes,
                    front.clock,
                    front.wakeups,
                    front.health,
                    self._wiring.capacity,
                    self._wiring.policy,
                )
                wakeups = front.wakeups
                self._wiring.stages.loop(
                    role,
                    planner.step,
                    lambda: wakeups.wait(Topic.PLANNER, planner.rest_seconds),
                    self._wiring.leads(role),
                )
            case Role.CLOSER:
                closer = Closer(
                    database=front.database,
                    clock=front.clock,
                    wakeups=front.wakeups,
                    slot=self._wiring.take_slot(role),
                )
                self._loop(role, closer.step, Topic.CLOSER)
            case Role.RECORDER:
                self._start_recorders()
            case Role.DISPATCHER | Role.RELAY:
                self._start_sending(role)
            case Role.NOTIFIER:
                self._start_notifier()
            case Role.SEALER:
                self._start_sealer()
            case Role.RESCUER | Role.ASSEMBLER | Role.KEEPER:
                self._start_tidying(role)
            case _:
                assert_never(role)

    def new_rescuer(self) -> Rescuer:
        """A rescuer on a stream of its own."""
        front = self._front
        return Rescuer(
            database=front.database,
            lanes=self._wiring.known_lanes,
            clock=front.clock,
            wakeups=front.wakeups,
            lease_seconds=LEASE_SECONDS,
            slot=self._wiring.take_slot(Role.RESCUER),
            door_heard_us=self._wiring.door_heard_us,
            capacity=self._wiring.capacity,
        )

    def _loop(self, role: Role, step: Callable[[], object], topic: Topic) -> None:
        wakeups = self._front.wakeups
        self._wiring.stages.loop(role, step, lambda: wakeups.wait(topic, POLL_SECONDS), self._wiring.leads(role))

    def _start_intake(self) -> None:
        front, stopping = self._front, self._wiring.stages.stopping
        reader = UploadReader(front.database, front.uploads, front.intake.read_batch, stopping.is_set)
        swept = False

        def step() -> bool:
            nonlocal swept
            if not swept:  # only now: who stands by leaves the others' files alone
                reader.sweep(self._wiring.upload_kept_seconds)
                swept = True
            return reader.step()

        self._loop(Role.INTAKE, step, Topic.READER)

    def _start_receiving(self) -> None:
        front, wiring = self._front, self._wiring
        if wiring.jobs_bus is None:
            return
        self._submit()
        receiving = Receiving(
            inbox=wiring.jobs_bus.inbox,
            database=front.database,
            submitting=front.submitting,
            outlook=front.outlook,
            ring=wiring.ring,
            clock=front.clock,
            wakeups=front.wakeups,
        )
        # Not the leader alone: the bus gives each message to one of those that are there.
        wiring.stages.loop("receiving", receiving.step, wiring.stages.pause)

    def _submit(self) -> None:
        """Have what is offered stored, by whichever of this process's doors it came."""
        if not self._submits:
            self._submits = True
            self._wiring.stages.spawn("submitting", self._front.submitting.run)

    def _start_notifier(self) -> None:
        front, wiring = self._front, self._wiring
        if wiring.jobs_bus is None:
            return
        notifier = Notifier(
            database=front.database,
            publisher=wiring.jobs_bus.publisher,
            signer=wiring.signer,
            clock=front.clock,
            wakeups=front.wakeups,
            message_bytes_max=wiring.jobs_bus.message_bytes_max,
        )
        announcer = Announcer(
            database=front.database, publisher=wiring.jobs_bus.publisher, signer=wiring.signer, clock=front.clock
        )

        def step() -> bool:
            announcer.step()
            return notifier.step()

        self._loop(Role.NOTIFIER, step, Topic.NOTIFIER)

    def _start_sealer(self) -> None:
        front, wiring = self._front, self._wiring
        if wiring.checkpoint_places:
            sealer = Sealer(
                database=front.database, places=wiring.checkpoint_places, signer=wiring.signer, clock=front.clock
            )
            rest = partial(wiring.stages.stopping.wait, SEAL_SECONDS)
            wiring.stages.loop(Role.SEALER, sealer.step, rest, wiring.leads(Role.SEALER))

    def _start_sending(self, role: Role) -> None:
        front, wiring = self._front, self._wiring
        if role is Role.RELAY:
            relay = Relay(front.database, front.lanes, wiring.publishers, wiring.signer, front.clock)
            self._loop(role, lambda: relay.step() >= ROWS_PER_STEP, Topic.RELAY)
            return
        dispatcher = Dispatcher(
            front.database, front.lanes, front.clock, front.wakeups, front.health, wiring.capacity, wiring.policy
        )

        def wait() -> None:  # first without a look at the ledger: it would be in the way of what was just dispatched
            if not front.wakeups.wait(Topic.DISPATCHER, _DISPATCHER_REST_SECONDS):
                front.wakeups.wait(Topic.DISPATCHER, dispatcher.seconds_until_due(POLL_SECONDS))

        # After less than a full step there is nothing more until someone says so: looking would be in the way.
        wiring.stages.loop(role, lambda: dispatcher.step() >= SHARDS_PER_STEP, wait, wiring.leads(role))

    def _start_tidying(self, role: Role) -> None:
        stages = self._wiring.stages
        step, wait = self._wiring.keep, stages.pause
        if role is Role.RESCUER:
            step = self.new_rescuer().step
        elif role is Role.ASSEMBLER:
            step, wait = Assembler(self._front.database, self._front.clock).step, self._wait_for_endings
        stages.loop(role, step, wait, self._wiring.leads(role))

    def _start_recorders(self) -> None:
        front = self._front
        for open_inbox in self._wiring.inboxes:
            recorder = Recorder(
                database=front.database,
                lanes=self._wiring.known_lanes,
                ring=self._wiring.ring,
                clock=front.clock,
                wakeups=front.wakeups,
                health=front.health,
                slot=self._wiring.take_slot(Role.RECORDER),
            )
            self._wiring.stages.record(recorder, open_inbox)

    def _wait_for_endings(self) -> None:
        """A batch ends once; looking after each of its flushes would cost more than the flush."""
        self._wiring.stages.stopping.wait(_ASSEMBLER_REST_SECONDS)
        self._front.wakeups.wait(Topic.ASSEMBLER, POLL_SECONDS)
