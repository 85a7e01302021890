"""Relay: committed shards go out to their lanes' queues, each confirmed by the bus before it is forgotten here."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Protocol

import structlog

from broker.bus.envelope import Kind, seal
from broker.clock import Clock
from broker.database import jobs, shards
from broker.database.connection import Connection, Database
from broker.database.shards import OutboxRow, ShardRecord
from broker.domain.errors import named
from broker.domain.lane import Lane
from broker.domain.shard import RunShard, ShardJob, ShardSpan, ShardState
from broker.signing import Signer

__all__ = ["ROWS_PER_STEP", "Relay", "ShardPublisher", "lanes_of_each_bus"]

ROWS_PER_STEP = 32
_STEP_BYTES_MAX = 64_000_000  # of bodies that are in memory at once, if not one job alone has more
_VALID_US_MIN = 1_000_000
_REST_SECONDS = 1.0

_log = structlog.get_logger(__name__)


class ShardPublisher(Protocol):
    """The part of `broker.bus.publisher.Publisher` that the relay needs."""

    def publish_shards(self, queue: str, envelopes: Sequence[bytes]) -> None:
        """Returns when the bus has confirmed every message."""


def lanes_of_each_bus(lanes: Sequence[Lane], publishers: Mapping[str, ShardPublisher]) -> list[list[Lane]]:
    """The lanes in groups that share a publisher, which is one for each bus.

    With a relay for each group, on a thread of its own, a bus that hangs delays no other.
    """
    groups: dict[int, list[Lane]] = defaultdict(list)
    for lane in lanes:
        groups[id(publishers[lane.name])].append(lane)
    return list(groups.values())


class Relay:
    """Empties the outbox of its lanes; rows of others it neither reads nor deletes. `step` is for one thread."""

    def __init__(
        self,
        database: Database,
        lanes: Sequence[Lane],
        publishers: Mapping[str, ShardPublisher],
        signer: Signer,
        clock: Clock,
    ) -> None:
        self._database = database
        self._lanes = {str(lane.name): lane for lane in lanes}
        self._publishers = publishers
        self._signer = signer
        self._clock = clock
        self._rests_until: dict[str, float] = {}

    def step(self) -> int:
        """Publish the oldest outbox rows; how many rows were handled.

        A crash between the confirmation and the delete publishes a shard again: its id is claimed once, so
        the second copy is dropped at the lease door.
        """
        rows, envelopes = self._database.read(self._seal_oldest)
        failed: dict[str, Exception] = {}
        for lane, sealed in envelopes.items():
            try:
                self._publishers[lane].publish_shards(self._lanes[lane].shards_queue, sealed)
            except Exception as error:  # noqa: BLE001 (one lane's bus must not hold up the others'; noted below)
                failed[lane] = error
        if done := [row.shard_id for row in rows if row.lane not in failed]:
            self._database.write(
                lambda connection: shards.forget_sent(connection, done), durable=False, idempotent=True
            )
        self._note_failures(failed)
        return len(rows)

    def _note_failures(self, failed: dict[str, Exception]) -> None:
        """Lanes whose bus failed are left out for a moment, lest their rows, the oldest, keep the others waiting."""
        for lane, error in failed.items():
            _log.warning("lane_not_reached", lane=lane, error=named(error))
            self._rests_until[lane] = time.monotonic() + _REST_SECONDS

    def _seal_oldest(self, connection: Connection) -> tuple[list[OutboxRow], dict[str, list[bytes]]]:
        now = time.monotonic()
        within_reach = [lane for lane in self._lanes if self._rests_until.get(lane, 0.0) <= now]
        rows = shards.outbox_rows(connection, within_reach, ROWS_PER_STEP)
        if not rows:
            return rows, {}
        records = shards.load(connection, [row.shard_id for row in rows])
        rows = _within(rows, records)
        return rows, self._seal(connection, rows, records)

    def _seal(
        self, connection: Connection, rows: list[OutboxRow], records: Mapping[bytes, ShardRecord]
    ) -> dict[str, list[bytes]]:
        sent = [record for row in rows if (record := records[row.shard_id]).state is ShardState.SENT]
        found = jobs.load_shard_jobs(connection, (span for record in sent for span in record.spans))
        sealed: dict[str, list[bytes]] = defaultdict(list)
        for record in sent:
            sealed[record.lane].append(self._envelope(record, found))
        return sealed

    def _envelope(self, record: ShardRecord, found: Mapping[ShardSpan, list[ShardJob]]) -> bytes:
        order = RunShard(
            record.shard_id,
            record.lane,
            record.tenant_id,
            record.endpoint,
            record.model,
            tuple(job for span in record.spans for job in found[span]),
            # A first crash alone may have been that of a job in another slot: only one with an engine of its own tells.
            exclusive=any(span.crashes for span in record.spans),
            beside=record.beside,
            budget_nano_usd=record.hold_nano_usd or None,
        )
        now_us = self._clock()
        valid_us = max(_VALID_US_MIN, record.claim_by_us - now_us)  # beyond that the shard has gone elsewhere
        return seal(self._signer, Kind.SHARD, record.lane, order, now_us=now_us, valid_us=valid_us)


def _within(rows: list[OutboxRow], records: Mapping[bytes, ShardRecord]) -> list[OutboxRow]:
    """The oldest, as many as may be in memory at once, at least one."""
    held = 0
    for place, row in enumerate(rows):
        held += sum(span.jobs_count * span.body_bytes_max for span in records[row.shard_id].spans)
        if place and held > _STEP_BYTES_MAX:
            return rows[:place]
    return rows
