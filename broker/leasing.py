"""The lease door: where a worker claims a shard and renews its right to it.

Called directly in the embedded form, over HTTP elsewhere. All times are the database's side's; the worker
gets a length and counts it on its own monotonic clock from before it asked.
"""

from __future__ import annotations

from typing import Protocol

import structlog

from broker.clock import Clock
from broker.database import instances, shards
from broker.database.connection import Connection, Database
from broker.database.shards import Holding
from broker.domain.parked import AskToPark, ParkAnswer
from broker.domain.presence import PresenceAnswer, WorkerPresence
from broker.domain.shard import ClaimAnswer, ClaimShard, ClaimShards, RenewAnswer, RenewLease

__all__ = ["LEASE_SECONDS", "LeaseDoor"]

LEASE_SECONDS = 15.0
"""How long a worker may be silent before its shard is taken back."""

_log = structlog.get_logger(__name__)


class Parking(Protocol):
    """`broker.bootstrap.payloads.Payloads` is one."""

    def sign_parking(self, question: AskToPark) -> ParkAnswer:
        """Where an event may be parked; nowhere when that can't be said now."""


class LeaseDoor:
    """Grants each shard once. `parking`: whoever signs where events may wait that are too large for their bus."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        lease_seconds: float = LEASE_SECONDS,
        parking: Parking | None = None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._parking = parking

    def claim(self, question: ClaimShard) -> ClaimAnswer:
        """Grant the shard, unless it was claimed or taken back before."""
        return self.claim_all(ClaimShards((question.shard_id,), question.lane, question.worker_id))[0]

    def claim_all(self, question: ClaimShards) -> list[ClaimAnswer]:
        """Likewise for each of these shards, in one transaction; the answers in their order."""
        held = self._database.write(lambda connection: self._hold(connection, question), idempotent=True)
        _log.debug("shards_claimed", asked=len(question.shard_ids), granted=len(held))
        return [self._claimed(held.get(shard_id)) for shard_id in question.shard_ids]

    def _hold(self, connection: Connection, question: ClaimShards) -> dict[bytes, Holding]:
        now_us = self._clock()
        until_us = now_us + self._lease_us()
        return shards.claim(connection, question.shard_ids, question.lane, question.worker_id, now_us, until_us)

    def _claimed(self, held: Holding | None) -> ClaimAnswer:
        if held is None:
            return ClaimAnswer(granted=False)
        return ClaimAnswer(True, self._lease_seconds, held.cancel_requested, held.cancelled_jobs)

    def renew(self, question: RenewLease) -> RenewAnswer:
        """Extend the lease, unless it is lost."""

        def work(connection: Connection) -> Holding | None:
            until_us = self._clock() + self._lease_us()
            return shards.renew(
                connection, question.shard_id, question.lane, question.worker_id, question.running, until_us
            )

        held = self._database.write(work, durable=False, idempotent=True)
        if held is None:
            return RenewAnswer(granted=False)
        return RenewAnswer(True, self._lease_seconds, held.cancel_requested, held.cancelled_jobs)

    def park(self, question: AskToPark) -> ParkAnswer:
        """Where the worker may park one event of a shard that it claimed; nowhere for any other."""
        if self._parking is None:
            return ParkAnswer()
        found = self._database.read(lambda connection: shards.load(connection, [question.shard_id]))
        record = found.get(question.shard_id)
        if record is None or (record.lane, record.worker_id) != (question.lane, question.worker_id):
            return ParkAnswer()
        return self._parking.sign_parking(question)

    def report(self, presence: WorkerPresence) -> PresenceAnswer:
        """Count on this worker for a while, or no longer, and note what became of its instance."""

        def work(connection: Connection) -> int:
            now_us = self._clock()
            instances.note_presence(connection, presence, now_us)
            return now_us

        now_us = self._database.write(work, durable=False, idempotent=True)
        if presence.gone:
            _log.info("instance_stopped", worker=presence.worker_id, lane=presence.lane)
        elif presence.leaving:
            _log.info("worker_leaves", worker=presence.worker_id, lane=presence.lane)
        return PresenceAnswer(now_us)

    def _lease_us(self) -> int:
        return int(self._lease_seconds * 1_000_000)
