"""What the unit tests are made of: valid by default, override what matters."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import Phase
from sqlalchemy import Table, func, select, text

from broker.bus.envelope import Kind, seal
from broker.database import batches, shards
from broker.database import tables as tables_module
from broker.database.batches import BatchRecord, Counts
from broker.database.connection import Connection, Database
from broker.database.shards import ShardRecord
from broker.database.types import Id
from broker.domain.errors import ErrorCode
from broker.domain.events import JobRan, JobsRan, ShardReturned, WorkerEvent
from broker.domain.identity import Identity, Scope
from broker.domain.ids import new_id, new_span
from broker.domain.job import Constraints, GroupKey, WaitingSpan
from broker.domain.lane import EngineSettings, Lane, LaneName, Market, Price, PriceMeter, Provider
from broker.domain.outcome import Outcome
from broker.domain.shard import Bitmap, ClaimAnswer, ClaimShard, RenewAnswer, RenewLease, RunShard, ShardJob, ShardState
from broker.domain.usage import Usage
from broker.health import LaneHealth
from broker.intake.batch_files import BatchFiles, BatchRequest
from broker.leasing import LeaseDoor
from broker.ledger.prices import import_prices
from broker.ledger.verifying import Verification, verify
from broker.ledger.writing import AttemptRow, OutcomeRow, ShardFacts
from broker.rules.placement.policy import Policy
from broker.signing import KeyRing, KeyRole, PublicKey, Signer
from broker.stages.closer import Closer
from broker.stages.dispatcher import Dispatcher
from broker.stages.planner import Planner
from broker.stages.recorder import Recorder
from broker.stages.rescuer import Rescuer
from broker.wakeups import Wakeups

MODEL = "m"
GENERATE_ONLY = (Phase.explicit, Phase.reuse, Phase.generate)
"""For examples that each take a database: shrinking one would take minutes."""

ENDPOINT = "/v1/chat/completions"
NOW_US = 1_800_000_000_000_000
SECOND_US = 1_000_000
LEASE_SECONDS = 15.0
DAY_SECONDS = 86_400


def a_price(usd_per_hour_nano: int = 3_600_000_000, **changes: Any) -> Price:
    """3.60 dollars an hour unless said: a microsecond of the accelerator costs one nano-dollar."""
    fields = {
        "version": f"2026-01-01.{usd_per_hour_nano}",
        "meter": PriceMeter.ACCELERATOR_HOUR,
        "instance_hour_pico_usd": usd_per_hour_nano * 1_000,
        "source": "a list",
        "as_of": "2026-01-01",
    }
    return Price(**fields | changes)


ONE_PLACE = EngineSettings(driver="echo", models=(MODEL,), concurrency=1)
"""Of an engine that runs one job at a time: its lane takes few shards, however small they are."""


def a_lane(name: str = "lane-a", *, models: tuple[str, ...] = (MODEL,), **changes: Any) -> Lane:
    fields = {
        "name": LaneName(name),
        "provider": Provider.GOOGLE_TPU,
        "region": "europe-west4",
        "accelerator": "v5e",
        "accelerator_count": 1,
        "market": Market.SPOT,
        "bus_url": "lanemem://unit",
        "engine": EngineSettings(driver="echo", models=models),
        "price": a_price(),
        "jobs_per_second": 100.0,
    }
    return Lane(**fields | changes)


def a_key(**changes: Any) -> GroupKey:
    fields = {"tenant_id": "t", "endpoint": ENDPOINT, "model": MODEL, "constraints": "{}", "deadline_us": NOW_US}
    return GroupKey(**fields | changes)


def a_span(jobs_count: int = 1, **changes: Any) -> WaitingSpan:
    fields = {
        "first_job_id": new_span(),
        "jobs_count": jobs_count,
        "group_id": b"g" * 16,
        "batch_id": b"b" * 16,
        "deadline_us": NOW_US + DAY_SECONDS * SECOND_US,
        "body_bytes_max": 100,
    }
    return WaitingSpan(**fields | changes)


def a_job_ran(index: int = 0, **changes: Any) -> JobRan:
    """A success that used one input token, two output tokens and 1,000 microseconds of the accelerator."""
    fields = {
        "index": index,
        "outcome": Outcome.SUCCEEDED,
        "status_code": 200,
        "started_us": NOW_US,
        "ended_us": NOW_US + 2_000,
        "run_us": 2_000,
        "usage": Usage(1, 0, 2, 0, 1_000),
        "body": b'{"n":%d}' % index if index >= 0 else b"{}",
    }
    return JobRan(**fields | changes)


def a_failure(index: int = 0, code: ErrorCode = ErrorCode.ENGINE_FAILED, **changes: Any) -> JobRan:
    fields = {"outcome": Outcome.FAILED, "status_code": 500, "error_code": code, "message": "it broke", "body": b""}
    return a_job_ran(index, **fields | changes)


def a_preemption(index: int = 0) -> JobRan:
    return a_failure(index, ErrorCode.PREEMPTED, outcome=Outcome.PREEMPTED)


def an_attempt_row(**changes: Any) -> AttemptRow:
    """`changes` may name columns of the row and of its shard's facts alike."""
    values: dict[str, Any] = {"outcome": "succeeded", "market": "spot", "cost_basis": "attributed", "decisive": True}
    # A price that nobody imported has no digest that could be checked.
    values |= {"attempt_id": new_id(), "job_id": new_id(), "price_digest": None} | changes
    facts = ShardFacts(**_filled(ShardFacts, values))
    return AttemptRow(**_filled(AttemptRow, values | {"shard": facts}))


def _filled(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Every field of a named tuple: as given, or of its type; what may be None is, unless it is given."""
    plain = {bytes: b"x" * 16, str: "s", int: 7, bool: False}
    return {name: values.get(name, plain.get(hint)) for name, hint in get_type_hints(kind).items()}


def an_outcome_row(**changes: Any) -> OutcomeRow:
    fields = {
        "job_id": new_id(),
        "tenant_id": "t",
        "batch_id": None,
        "outcome": "succeeded",
        "error_code": None,
        "attempt_id": None,
        "attempt_number": None,
        "submission_digest": None,
    }
    return OutcomeRow(**fields | changes)


def an_order(jobs_count: int = 1, *, lane: str = "lane-a", words: str = "hello") -> RunShard:
    """A shard of chats, each saying something else."""
    bodies = [
        msgspec.json.encode({"model": MODEL, "messages": [{"role": "user", "content": f"{words} {n}"}]})
        for n in range(jobs_count)
    ]
    return RunShard(
        new_id(), lane, "t", ENDPOINT, MODEL, tuple(ShardJob(new_id(), body, b"salt" * 4) for body in bodies)
    )


def a_line(custom_id: str = "a", **changes: Any) -> bytes:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
    fields = {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body | changes.pop("body", {})}
    return msgspec.json.encode(fields | changes)


def some_lines(count: int, prefix: str = "a") -> bytes:
    return b"".join(a_line(f"{prefix}{number}") + b"\n" for number in range(count))


def a_signer(key_id: str = "k") -> tuple[Signer, Ed25519PrivateKey]:
    private = Ed25519PrivateKey.generate()
    return Signer(key_id, private), private


def an_identity(tenant: str = "t", *scopes: Scope) -> Identity:
    """Who may do all that a token can allow, or what is said."""
    return Identity(tenant, f"subject of {tenant}", frozenset(scopes or set(Scope) - {Scope.LEASES}))


class FixedClock:
    """Time stands still until a test moves it."""

    def __init__(self, now_us: int = NOW_US) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us

    def advance(self, seconds: float) -> None:
        self.now_us += round(seconds * SECOND_US)


class Message(msgspec.Struct, frozen=True):
    """A delivery, as the recorder sees it."""

    queue: str
    envelope: bytes


class World:
    """Every stage of the broker on one real database, stepped by hand; the test plays the worker."""

    def __init__(self, database: Database, lanes: Sequence[Lane], folder: Path) -> None:
        self.database, self.lanes, self.folder = database, list(lanes), folder
        self.clock, self.wakeups = FixedClock(), Wakeups()
        database.write(lambda connection: import_prices(connection, self.lanes, self.clock()))  # as every start does
        signers = {str(lane.name): a_signer(f"key-{lane.name}") for lane in lanes}
        self.signers = {name: signer for name, (signer, _) in signers.items()}
        self.ring = KeyRing(
            {
                signer.key_id: PublicKey(KeyRole.LANE, name, private.public_key())
                for name, (signer, private) in signers.items()
            }
        )
        parts: dict[str, Any] = {"database": database, "lanes": self.lanes, "clock": self.clock}
        parts["wakeups"] = self.wakeups
        self.intake = BatchFiles(database, {MODEL, "m2"}, self.clock, self.wakeups, self.lanes)
        self.health = LaneHealth(lambda: self.clock.now_us / SECOND_US, jitter=lambda: 1.0)
        self.place_by(Policy())
        self.door = LeaseDoor(database, self.clock, LEASE_SECONDS)
        self.recorder = Recorder(ring=self.ring, health=self.health, **parts)
        self.rescuer = Rescuer(lease_seconds=LEASE_SECONDS, **parts)
        self.closer = Closer(database=database, clock=self.clock, wakeups=self.wakeups)

    def place_by(self, policy: Policy, slots: dict[str, int] | None = None) -> None:
        """Planner and dispatcher begin anew, with this policy and one worker for each lane, or so many slots."""
        if slots is None:
            slots = {str(lane.name): lane.slots for lane in self.lanes}
        parts: dict[str, Any] = {"database": self.database, "lanes": self.lanes, "clock": self.clock, "policy": policy}
        parts |= {"wakeups": self.wakeups, "health": self.health, "capacity": lambda _connection: slots}
        self.planner, self.dispatcher = Planner(**parts), Dispatcher(**parts)

    def create(self, content: bytes, **changes: Any) -> BatchRecord:
        identity = an_identity(changes.pop("tenant_id", "t"))
        fields = {
            "source_name": "in.jsonl",
            "source_digest": sha256(content).digest(),
            "source_bytes": len(content),
            "output_path": str(self.folder / "out.jsonl"),
            "error_path": str(self.folder / "err.jsonl"),
            "window_seconds": DAY_SECONDS,
            "max_cost_nano_usd": None,
            "constraints": Constraints(),
        }
        return self.intake.create_batch(identity, BatchRequest(**fields | changes))

    def take_in(self, content: bytes, **changes: Any) -> BatchRecord:
        return list(self.intake.read_batch(self.create(content, **changes), io.BytesIO(content)))[-1]

    def dispatch(self) -> list[ShardRecord]:
        """Plan and dispatch; the shards that this wrote, in order."""
        before = len(self._written())
        self.planner.step()
        self.dispatcher.step()
        found = self.all_shards()
        return [found[shard_id] for shard_id in self._written()[before:]]

    def _written(self) -> list[bytes]:
        """All shards in the order in which they were written, which their ids only tell to the millisecond."""

        def work(connection: Connection) -> list[bytes]:
            # PostgreSQL moves a shard's row when it changes; those in the outbox stay, for nobody publishes here.
            place = "outbox ORDER BY ctid" if connection.dialect.name == "postgresql" else "shard ORDER BY rowid"
            return list(connection.execute(text(f"SELECT shard_id FROM {place}").columns(shard_id=Id)).scalars())

        return self.database.read(work)

    def claim(self, shard: ShardRecord, worker: str = "w1") -> ClaimAnswer:
        return self.door.claim(ClaimShard(shard.shard_id, shard.lane, worker))

    def renew(self, shard: ShardRecord, running: Iterable[int], worker: str = "w1") -> RenewAnswer:
        return self.door.renew(RenewLease(shard.shard_id, shard.lane, worker, Bitmap.of(list(running)).to_bytes()))

    def claimed(self) -> list[ShardRecord]:
        written = self.dispatch()
        assert all(self.claim(shard).granted for shard in written)
        return written

    def ran(self, shard: ShardRecord, *jobs: JobRan, number: int = 0) -> JobsRan:
        return JobsRan(shard.shard_id, shard.lane, "w1", number, jobs)

    def returned(self, shard: ShardRecord, reason: ErrorCode = ErrorCode.PREEMPTED) -> ShardReturned:
        return ShardReturned(shard.shard_id, shard.lane, "w1", 99, reason)

    def message(self, event: WorkerEvent, *, signed_by: str | None = None, queue: str | None = None) -> Message:
        signer = self.signers[signed_by or event.lane]
        sealed = seal(signer, Kind.EVENT, "broker", event, now_us=self.clock(), valid_us=3_600 * SECOND_US)
        return Message(queue or f"lane.{event.lane}.events", sealed)

    def record(self, *events: WorkerEvent) -> None:
        self.recorder.record([self.message(event) for event in events])

    def run_all(self) -> None:
        """Every waiting job succeeds."""
        while shards_now := self.claimed():
            self.record(*(self.ran(shard, *map(a_job_ran, range(shard.jobs_count))) for shard in shards_now))

    def fall_silent(self, seconds: float = LEASE_SECONDS + 1) -> int:
        """Time passes without a word from the workers, while the rescuer looks on; how many shards it took back."""
        taken, end = 0, self.clock.now_us + round(seconds * SECOND_US)
        while self.clock.now_us < end:
            self.clock.advance(5)
            taken += self.rescuer.step()
        return taken

    # What the database holds.

    def read(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return self.database.read(lambda connection: work(connection, *arguments))

    def rows(self, table: Table) -> list[Any]:
        return list(self.read(lambda connection: connection.execute(select(table)).all()))

    def count(self, table: Table) -> int:
        return int(self.read(lambda connection: connection.execute(select(func.count()).select_from(table)).scalar()))

    def all_shards(self) -> dict[bytes, ShardRecord]:
        ids = sorted(row.shard_id for row in self.rows(tables_module.shard))
        return self.read(shards.load, ids)

    def shard(self, shard: ShardRecord) -> ShardRecord:
        return self.all_shards()[shard.shard_id]

    def waiting(self) -> list[WaitingSpan]:
        rows = self.rows(tables_module.ready)
        spans = [msgspec.convert(row._mapping, WaitingSpan) for row in rows]
        return sorted(spans, key=lambda span: span.first_job_id)

    def waiting_jobs(self) -> int:
        return sum(span.jobs_count for span in self.waiting())

    def held(self, batch_id: bytes) -> int:
        """What is set aside for the batch's shards that are still out."""
        mine = [shard for shard in self.all_shards().values() if shard.batch_id == batch_id]
        return sum(shard.hold_nano_usd for shard in mine if shard.state in {ShardState.SENT, ShardState.RUNNING})

    def batch(self, batch_id: bytes) -> BatchRecord:
        return self.read(batches.get, batch_id)

    def counts(self, batch_id: bytes) -> Counts:
        return self.read(batches.progress, batch_id)

    def verified(self) -> Verification:
        return self.read(verify)


def splits(items: Sequence[Any], cuts: Iterable[int]) -> Iterator[Sequence[Any]]:
    """The items in pieces, cut at these places."""
    places = sorted({0, len(items), *cuts})
    yield from (items[start:end] for start, end in pairwise(places))
