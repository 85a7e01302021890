"""Shards: what travels to a lane as one message, and the right to work on it."""

from __future__ import annotations

from enum import StrEnum

import msgspec

__all__ = [
    "Bitmap",
    "ClaimAnswer",
    "ClaimShard",
    "ClaimShards",
    "RenewAnswer",
    "RenewLease",
    "RunShard",
    "ShardJob",
    "ShardSpan",
    "ShardState",
]


class ShardState(StrEnum):
    """A shard's state, with the states that may follow."""

    SENT = "sent"  # written, and on its way to the lane -> running, taken_back
    RUNNING = "running"  # claimed by a worker -> done, returned, taken_back
    DONE = "done"  # every index is in the ledger
    RETURNED = "returned"  # the worker handed back what it had not done, which travels on under a new shard id
    TAKEN_BACK = "taken_back"  # nobody claimed it, or its worker fell silent; likewise


class ShardJob(msgspec.Struct, frozen=True, array_like=True):
    """One job inside the message. `salt` keys the digests of request and reply.

    It may begin until `deadline_us`; 0: at any time, as a broker of an older build has it.
    """

    job_id: bytes
    body: bytes
    salt: bytes
    deadline_us: int = 0


class RunShard(msgspec.Struct, frozen=True, array_like=True):
    """The order to a lane: run these jobs. A job's index is its place in `jobs`.

    `exclusive`: one of them is suspected of killing its engine, so nothing else may be with the engine meanwhile.
    `beside`: they wait for no slot, and get the engine's next places: another tenant's work has the slots.
    `budget_nano_usd`: once its jobs have cost so much, no other begins; None where no budget limits them.
    """

    shard_id: bytes
    lane: str
    tenant_id: str
    endpoint: str
    model: str
    jobs: tuple[ShardJob, ...]
    exclusive: bool = False
    beside: bool = False
    budget_nano_usd: int | None = None


class ShardSpan(msgspec.Struct, frozen=True):
    """Jobs with consecutive ids inside a shard; they hold its indices from `first_index` on.

    The rest is what the `WaitingSpan` said that they were cut from.
    """

    first_index: int
    first_job_id: bytes
    jobs_count: int
    attempt_number: int
    failures: int
    crashes: int
    alone: bool
    body_bytes_max: int
    deadline_us: int
    failed_lanes: str | None = None
    preemptions: int = 0
    beginning: bytes | None = None
    beginnings: int = 0
    submitted_us: int | None = None


class ClaimShard(msgspec.Struct, frozen=True, array_like=True):
    """A worker asks for the one right to run a shard; asked again by the same worker, the answer is the same."""

    shard_id: bytes
    lane: str
    worker_id: str


class ClaimShards(msgspec.Struct, frozen=True, array_like=True, tag="claims"):
    """The same for several shards at once, for one worker; the answers come in the order of `shard_ids`."""

    shard_ids: tuple[bytes, ...]
    lane: str
    worker_id: str


class ClaimAnswer(msgspec.Struct, frozen=True, array_like=True):
    """`granted` is False when the shard is not the worker's: drop the message, run nothing.

    `lease_seconds` counts from the moment the worker sent the question, by its own monotonic clock.
    `cancelled` and `cancelled_jobs` as in `RenewAnswer`.
    """

    granted: bool
    lease_seconds: float = 0.0
    cancelled: bool = False
    cancelled_jobs: bytes = b""


class RenewLease(msgspec.Struct, frozen=True, array_like=True, tag="renew"):
    """A worker is still at it; `running` is the bitmap of the indices that its engine holds now."""

    shard_id: bytes
    lane: str
    worker_id: str
    running: bytes


class RenewAnswer(msgspec.Struct, frozen=True, array_like=True):
    """`granted` is False when the lease is lost: stop. `cancelled` asks the worker to stop and say so.

    `cancelled_jobs` asks it of single jobs, by the bitmap of their indices; the others run on.
    """

    granted: bool
    lease_seconds: float = 0.0
    cancelled: bool = False
    cancelled_jobs: bytes = b""


class Bitmap:
    """A set of small indices as bytes: bit i of byte i // 8."""

    __slots__ = ("_bits",)

    def __init__(self, data: bytes = b"") -> None:
        self._bits = int.from_bytes(data, "little")

    @classmethod
    def of(cls, indices: list[int]) -> Bitmap:
        """The set of these indices."""
        bitmap = cls()
        for index in indices:
            bitmap.add(index)
        return bitmap

    def __contains__(self, index: int) -> bool:
        return bool(self._bits >> index & 1)

    def __len__(self) -> int:
        return self._bits.bit_count()

    def add(self, index: int) -> None:
        """Put `index` in the set."""
        self._bits |= 1 << index

    def missing(self, count: int) -> list[int]:
        """The indices below `count` that are not in the set, ascending."""
        return [index for index in range(count) if not self._bits >> index & 1]

    def to_bytes(self) -> bytes:
        """The inverse of the constructor."""
        return self._bits.to_bytes((self._bits.bit_length() + 7) // 8, "little")
