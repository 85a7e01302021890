"""What a form of process gives to its roles, by subject; each role takes what it needs (`roles`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

import msgspec

from broker.bootstrap.door import HttpDoor
from broker.bootstrap.jobs_bus import JobsBus
from broker.bootstrap.loop import ALONE, Leads
from broker.bootstrap.threads import Threads
from broker.bus.inbox import Inbox
from broker.database.connection import Connection
from broker.domain.lane import Lane
from broker.front import Front
from broker.leasing import LeaseDoor
from broker.ledger.checkpoints import CheckpointPlace
from broker.ledger.streams import FixedSlot, StreamSlot
from broker.rules.placement.policy import Policy
from broker.signing import KeyRing, Signer
from broker.stages.relay import ShardPublisher

__all__ = ["Keys", "LedgerSide", "Peers", "Role", "Transport", "Wiring"]


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


class Keys(msgspec.Struct, frozen=True):
    """The broker's own key to sign with, and those of all whose signature counts."""

    signer: Signer
    ring: KeyRing


class Transport(msgspec.Struct, frozen=True, kw_only=True):
    """The buses. Without a `jobs_bus` no jobs come over a bus, and the notifier has nobody to tell.

    `publishers` has one for each lane's bus; `inboxes` opens, for each bus, the events queues on it, given how many
    messages to prefetch.
    """

    publishers: Mapping[str, ShardPublisher]
    inboxes: Sequence[Callable[[int], Inbox]]
    jobs_bus: JobsBus | None = None


class Peers(msgspec.Struct, frozen=True, kw_only=True):
    """What keeps processes apart that have the same roles; of itself, there is only one process.

    `leads` says who does a role's work; `take_slot` gives a writer the name of a stream that no other process writes;
    `door_heard_us` tells when the lease door last answered, where it is another process; `upload_kept_seconds` is how
    old an upload without a batch must be to be thrown away.
    """

    leads: Callable[[Role], Leads] = lambda _role: ALONE
    take_slot: Callable[[Role], StreamSlot] = lambda role: FixedSlot(f"{role}-0")
    door_heard_us: Callable[[Connection], int | None] | None = None
    upload_kept_seconds: float = 0.0


class LedgerSide(msgspec.Struct, frozen=True, kw_only=True):
    """`known_lanes` are all that were ever configured. Without `checkpoint_places` nothing is sealed."""

    known_lanes: Sequence[Lane]
    checkpoint_places: Sequence[CheckpointPlace] = ()


class Wiring(msgspec.Struct, frozen=True, kw_only=True):
    """`policy` is the planner's and the dispatcher's. `keep` is the keeper's hourly round.

    Without a `door` nothing comes over HTTP. `lease_door` is what it serves to workers that are other processes.
    """

    front: Front
    threads: Threads
    keys: Keys
    transport: Transport
    ledger: LedgerSide
    keep: Callable[[], None]
    peers: Peers = Peers()
    policy: Policy = Policy()
    door: HttpDoor | None = None
    lease_door: LeaseDoor | None = None
