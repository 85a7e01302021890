"""The broker's roles, each a loop or two on the same database: all in one process, or any set of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import assert_never

from broker.bootstrap.door import HttpDoor
from broker.bootstrap.jobs_bus import JobsBus
from broker.bootstrap.loop import POLL_SECONDS, Every, Leads, Loop, Woken
from broker.bootstrap.recording import recorder_loop
from broker.bootstrap.threads import Threads
from broker.bootstrap.wiring import LedgerSide, Peers, Role, Transport, Wiring
from broker.front import Front
from broker.intake.bus_jobs import BusJobs
from broker.intake.uploads import UploadReader
from broker.leasing import LEASE_SECONDS, LeaseDoor
from broker.ledger.checkpoints import CheckpointPlace
from broker.rules.placement.policy import Policy
from broker.signing import KeyRing, Signer
from broker.stages.announcer import Announcer
from broker.stages.assembler import Assembler
from broker.stages.closer import Closer
from broker.stages.dispatcher import SHARDS_PER_STEP, Dispatcher
from broker.stages.keeper import KEEPER_SECONDS
from broker.stages.notifier import Notifier
from broker.stages.planner import Planner
from broker.stages.recorder import Recorder
from broker.stages.relay import ROWS_PER_STEP, Relay, lanes_of_each_bus
from broker.stages.rescuer import Rescuer
from broker.stages.sealer import SEAL_SECONDS, Sealer
from broker.wakeups import Topic

__all__ = ["Role", "new_rescuer", "start_roles"]

_ASSEMBLER_REST_SECONDS = 0.1
_DISPATCHER_REST_SECONDS = 0.02
_SUBMITTING = "submitting"


def start_roles(roles: Collection[Role], wiring: Wiring) -> None:
    """Have this process be these, until its threads are stopped. The door opens last, when the others are at work."""
    for role in sorted(roles, key=lambda role: (role is Role.API, list(Role).index(role))):
        _start(role, wiring)


def _start(role: Role, wiring: Wiring) -> None:  # noqa: C901, PLR0912 (a case for each role)
    front, threads, keys, transport = wiring.front, wiring.threads, wiring.keys, wiring.transport
    leads = wiring.peers.leads
    match role:
        case Role.API:
            if wiring.door is not None:
                _start_api(threads, front, wiring.door, wiring.lease_door, keys.ring)
        case Role.INTAKE:
            _start_intake(threads, front, leads(role), wiring.peers.upload_kept_seconds)
            if transport.jobs_bus is not None:
                _start_receiving(threads, front, transport.jobs_bus, keys.ring)
        case Role.PLANNER:
            _start_planner(threads, front, leads(role), wiring.policy)
        case Role.DISPATCHER:
            _start_dispatcher(threads, front, leads(role), wiring.policy)
        case Role.RELAY:
            _start_relays(threads, front, leads(role), transport, keys.signer)
        case Role.RECORDER:
            _start_recorders(threads, front, transport, keys.ring, wiring.ledger, wiring.peers)
        case Role.RESCUER:
            _start_rescuer(threads, new_rescuer(front, wiring.ledger, wiring.peers), leads(role))
        case Role.CLOSER:
            _start_closer(threads, front, leads(role), wiring.peers)
        case Role.ASSEMBLER:
            _start_assembler(threads, front, leads(role))
        case Role.NOTIFIER:
            if transport.jobs_bus is not None:
                _start_notifier(threads, front, leads(role), transport.jobs_bus, keys.signer)
        case Role.SEALER:
            if wiring.ledger.checkpoint_places:
                _start_sealer(threads, front, leads(role), wiring.ledger.checkpoint_places, keys.signer)
        case Role.KEEPER:
            _start_keeper(threads, leads(role), wiring.keep)
        case _:
            assert_never(role)


def _start_api(threads: Threads, front: Front, door: HttpDoor, lease_door: LeaseDoor | None, ring: KeyRing) -> None:
    _start_submitting(threads, front)
    door.open(front, threads, lease_door, ring)


def _start_submitting(threads: Threads, front: Front) -> None:
    """Have what is offered stored, by whichever of this process's doors it came."""
    if not threads.runs(_SUBMITTING):
        threads.spawn(_SUBMITTING, front.submitting.run, lambda: front.submitting.is_closed)


def _start_intake(threads: Threads, front: Front, leads: Leads, kept_seconds: float) -> None:
    reader = UploadReader(front.database, front.uploads, front.intake.read_batch, threads.stopping.is_set)
    swept = False

    def step() -> bool:
        nonlocal swept
        if not swept:  # only now: who stands by leaves the others' files alone
            reader.sweep(kept_seconds)
            swept = True
        return reader.step() or front.reruns.step()

    threads.start(Loop(name=Role.INTAKE, step=step, rest=Woken(topic=Topic.READER), leads=leads))


def _start_receiving(threads: Threads, front: Front, jobs_bus: JobsBus, ring: KeyRing) -> None:
    """Not the leader alone: the bus gives each message to one of those that are there."""
    _start_submitting(threads, front)
    receiving = BusJobs(
        inbox=jobs_bus.inbox,
        database=front.database,
        submitting=front.submitting,
        outlook=front.outlook,
        ring=ring,
        clock=front.clock,
        wakeups=front.wakeups,
    )
    threads.start(Loop(name="receiving", step=receiving.step))


def _start_planner(threads: Threads, front: Front, leads: Leads, policy: Policy) -> None:
    planner = Planner(
        front.database,
        front.lanes,
        front.clock,
        front.wakeups,
        front.health,
        front.live_slots,
        policy,
    )
    rest = Woken(topic=Topic.PLANNER, poll_seconds=lambda: planner.rest_seconds)
    threads.start(Loop(name=Role.PLANNER, step=planner.step, rest=rest, leads=leads))


def _start_dispatcher(threads: Threads, front: Front, leads: Leads, policy: Policy) -> None:
    dispatcher = Dispatcher(
        front.database, front.lanes, front.clock, front.wakeups, front.health, front.live_slots, policy
    )

    def step() -> bool:  # after less than a full step there is nothing more until someone says so
        return dispatcher.step() >= SHARDS_PER_STEP

    rest = Woken(
        topic=Topic.DISPATCHER,
        poll_seconds=lambda: dispatcher.seconds_until_due(POLL_SECONDS),
        brief_seconds=_DISPATCHER_REST_SECONDS,
    )
    threads.start(Loop(name=Role.DISPATCHER, step=step, rest=rest, leads=leads))


def _start_relays(threads: Threads, front: Front, leads: Leads, transport: Transport, signer: Signer) -> None:
    """One for each bus, so that a bus that hangs delays no other; one process leads with all of them."""
    for lanes in lanes_of_each_bus(front.lanes, transport.publishers):
        relay = Relay(front.database, lanes, transport.publishers, signer, front.clock)
        step = partial(_fills_a_page, relay)
        threads.start(Loop(name=Role.RELAY, step=step, rest=Woken(topic=Topic.RELAY), leads=leads))


def _fills_a_page(relay: Relay) -> bool:
    """One step; whether there may be more."""
    return relay.step() >= ROWS_PER_STEP


def _start_recorders(
    threads: Threads, front: Front, transport: Transport, ring: KeyRing, ledger: LedgerSide, peers: Peers
) -> None:
    """One for each bus."""
    for open_inbox in transport.inboxes:
        recorder = Recorder(
            database=front.database,
            lanes=ledger.known_lanes,
            ring=ring,
            clock=front.clock,
            wakeups=front.wakeups,
            health=front.health,
            slot=peers.take_slot(Role.RECORDER),
            in_catalog=front.lanes,
        )
        threads.start(recorder_loop(recorder, open_inbox))


def new_rescuer(front: Front, ledger: LedgerSide, peers: Peers) -> Rescuer:
    """A rescuer on a stream of its own."""
    return Rescuer(
        database=front.database,
        lanes=ledger.known_lanes,
        clock=front.clock,
        wakeups=front.wakeups,
        lease_seconds=LEASE_SECONDS,
        slot=peers.take_slot(Role.RESCUER),
        door_heard_us=peers.door_heard_us,
        capacity=front.live_slots,
    )


def _start_rescuer(threads: Threads, rescuer: Rescuer, leads: Leads) -> None:
    threads.start(Loop(name=Role.RESCUER, step=lambda: rescuer.step() > 0, leads=leads))


def _start_closer(threads: Threads, front: Front, leads: Leads, peers: Peers) -> None:
    closer = Closer(
        database=front.database, clock=front.clock, wakeups=front.wakeups, slot=peers.take_slot(Role.CLOSER)
    )
    rest = Woken(topic=Topic.CLOSER)
    threads.start(Loop(name=Role.CLOSER, step=lambda: closer.step() > 0, rest=rest, leads=leads))


def _start_assembler(threads: Threads, front: Front, leads: Leads) -> None:
    assembler = Assembler(front.database, front.clock)
    # A batch ends once; looking after each of its flushes would cost more than the flush.
    rest = Woken(topic=Topic.ASSEMBLER, deaf_seconds=_ASSEMBLER_REST_SECONDS)
    threads.start(Loop(name=Role.ASSEMBLER, step=lambda: bool(assembler.step()), rest=rest, leads=leads))


def _start_notifier(threads: Threads, front: Front, leads: Leads, jobs_bus: JobsBus, signer: Signer) -> None:
    notifier = Notifier(
        database=front.database,
        publisher=jobs_bus.publisher,
        signer=signer,
        clock=front.clock,
        wakeups=front.wakeups,
        message_bytes_max=jobs_bus.message_bytes_max,
    )
    announcer = Announcer(database=front.database, publisher=jobs_bus.publisher, signer=signer, clock=front.clock)

    def step() -> bool:
        announcer.step()
        return notifier.step()

    threads.start(Loop(name=Role.NOTIFIER, step=step, rest=Woken(topic=Topic.NOTIFIER), leads=leads))


def _start_sealer(
    threads: Threads, front: Front, leads: Leads, places: Sequence[CheckpointPlace], signer: Signer
) -> None:
    sealer = Sealer(database=front.database, places=places, signer=signer, clock=front.clock)
    threads.start(Loop(name=Role.SEALER, step=sealer.step, rest=Every(SEAL_SECONDS), leads=leads))


def _start_keeper(threads: Threads, leads: Leads, keep: Callable[[], None]) -> None:
    threads.start(Loop(name=Role.KEEPER, step=keep, rest=Every(KEEPER_SECONDS), leads=leads))
