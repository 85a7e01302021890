"""Dispatcher: cut shards from the groups whose turn it is, for the lanes that dealing chose for them.

Late binding: work waits in the database until a lane has room, and a lane holds at most one shard per slot
beyond those running, so that no slot waits on the broker and little is bound early.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import structlog

from broker.clock import Clock
from broker.database import jobs, ready, shards
from broker.database.connection import Connection, Database
from broker.database.fencing import alone
from broker.database.lane_work import Capacity
from broker.domain.ids import id_at, id_offset, ids_of_span, new_id
from broker.domain.job import WaitingSpan
from broker.domain.lane import Lane
from broker.domain.shard import ShardSpan
from broker.health import Health
from broker.ledger.writing import ended_jobs
from broker.rules.placement.dealing import deal
from broker.rules.placement.policy import Policy
from broker.rules.placement.turns import Hand
from broker.rules.pricing import affordable_jobs
from broker.rules.sharding import jobs_per_shard
from broker.stages.dealing import Choice, Dealing, Room, Waiting
from broker.wakeups import Topic, Wakeups

__all__ = ["CLAIM_SECONDS", "SHARDS_PER_STEP", "Dispatcher"]

CLAIM_SECONDS = 15.0
"""How long a shard may lie unclaimed, beyond the work expected ahead of it. What a bus has lost waits that long; what
was merely slow goes to the lane again, and its first message is refused at the lease door.
"""

_SPANS_PER_LOAD = 256
SHARDS_PER_STEP = 32

_log = structlog.get_logger(__name__)


class _Line:
    """A group's waiting spans during one step: loaded as needed, consumed in memory, written back once."""

    def __init__(self, connection: Connection, group_id: bytes, now_us: int, held_batches: set[bytes]) -> None:
        self._connection = connection
        self._group_id = group_id
        self._now_us = now_us
        self._held_batches = held_batches
        self._waiting: list[WaitingSpan] = []
        self._taken: list[WaitingSpan] = []
        self._rest: WaitingSpan | None = None

    def first(self) -> WaitingSpan | None:
        """The span that is next, earliest deadline first; None when nothing of the group may go."""
        while True:
            if not self._waiting and not self._load():
                return None
            if self._waiting[0].batch_id not in self._held_batches:
                return self._waiting[0]
            if self._waiting.pop(0) is self._rest:
                self._put_rest_back()

    def take(self, lane: Lane, jobs_max: int) -> list[ShardSpan]:
        """Jobs of the first span's batch, up to `jobs_max` and to what the lane's shards carry, out of the line.

        Empty when every job looked at had ended meanwhile (a late result won), and left the line for that.
        """
        taken: list[ShardSpan] = []
        index = 0
        batch_id = self._waiting[0].batch_id
        while self._waiting and index < jobs_max:
            span = self._waiting[0]
            jobs_max = min(jobs_max, jobs_per_shard(lane, span))
            if span.batch_id != batch_id or (span.alone and index) or index >= jobs_max:
                break
            count = min(span.jobs_count, jobs_max - index)
            self._consume(span, count)
            for job_id, length in _not_ended(self._connection, span, count):
                taken.append(_shard_span(span, index, job_id, length))
                index += length
        return taken

    def write_back(self) -> None:
        """Delete the rows that were used up, and put back what remains of the last one."""
        ready.withdraw(self._connection, self._taken)
        self._put_rest_back()
        self._taken, self._waiting = [], []

    def _put_rest_back(self) -> None:
        if self._rest is not None:
            jobs.wait(self._connection, [self._rest])
            self._rest = None

    def _consume(self, span: WaitingSpan, count: int) -> None:
        if span is not self._rest:
            self._taken.append(span)
        self._rest = None
        if count == span.jobs_count:
            self._waiting.pop(0)
            return
        self._rest = msgspec.structs.replace(
            span, first_job_id=id_at(span.first_job_id, count), jobs_count=span.jobs_count - count
        )
        self._waiting[0] = self._rest

    def _load(self) -> bool:
        self.write_back()
        self._waiting = ready.next_spans(
            self._connection, self._group_id, self._now_us, self._held_batches, _SPANS_PER_LOAD
        )
        return bool(self._waiting)


class Dispatcher:
    """Turns waiting spans into shards."""

    def __init__(
        self,
        database: Database,
        lanes: Sequence[Lane],
        clock: Clock,
        wakeups: Wakeups,
        health: Health,
        capacity: Capacity,
        policy: Policy | None = None,
    ) -> None:
        self._database = database
        self._dealing = Dealing(lanes, health, capacity, policy)
        self._clock = clock
        self._wakeups = wakeups

    def step(self) -> int:
        """Dispatch what there is room for; the number of shards written, at most SHARDS_PER_STEP."""
        written, unplanned = self._database.write(self._dispatch, durable=False)
        if unplanned:
            self._wakeups.notify(Topic.PLANNER)
        if written:
            self._wakeups.notify(Topic.RELAY)
        return written

    def seconds_until_due(self, longest_seconds: float) -> float:
        """How long nothing new can become due, at most `longest_seconds`."""
        now_us = self._clock()
        due_us = self._database.read(lambda connection: ready.next_due_us(connection, now_us))
        if due_us is None:
            return longest_seconds
        return min(longest_seconds, max(0.0, (due_us - now_us) / 1_000_000))

    def _dispatch(self, connection: Connection) -> tuple[int, bool]:
        if ready.is_empty(connection):
            return 0, False
        alone(connection, ready.KEEPERS)
        now_us = self._clock()
        room = self._dealing.room(connection, now_us, SHARDS_PER_STEP)
        records: list[shards.ShardRecord] = []
        unplanned = False
        if room.is_open:
            hand, unplanned = self._dealing.hand(connection, now_us, room)
            records = self._deal(connection, hand, room, now_us)
        shards.write_shards(connection, records)
        if records:
            _log.info("shards_dispatched", shards=len(records), jobs=sum(record.jobs_count for record in records))
        for record in records:
            _log.debug("shard_dispatched", shard=record.shard_id.hex(), lane=record.lane, jobs=record.jobs_count)
        return len(records), unplanned

    def _deal(self, connection: Connection, hand: Hand[Waiting], room: Room, now_us: int) -> list[shards.ShardRecord]:
        """One shard after another, each of the group whose turn it is, while there is room."""
        lines: dict[bytes, _Line] = {}
        records: list[shards.ShardRecord] = []

        def give(waiting: Waiting) -> float | None:
            if not self._dealing.has_room(waiting, room):
                return None
            line = lines.get(waiting.group_id)
            if line is None:
                line = lines[waiting.group_id] = _Line(connection, waiting.group_id, now_us, room.held_batches)
            first = line.first()
            choice = self._dealing.choose(waiting, first, room) if first else None
            record = self._cut(line, choice, room, now_us) if choice else None
            if record is None:
                return None
            records.append(record)
            return self._dealing.work(waiting, record.lane, record.jobs_count)

        deal(hand, lambda: room.shards_left > 0, give)
        for line in lines.values():
            line.write_back()
        return records

    def _cut(self, line: _Line, choice: Choice, room: Room, now_us: int) -> shards.ShardRecord | None:
        """One shard of the group for the chosen lane; None when nothing of the group is left to give."""
        lane, cost = choice.lane, choice.candidate.expected_job_cost_nano_usd
        while (first := line.first()) is not None:
            jobs_max = min(lane.shard_jobs_max, choice.entry.jobs_max)
            if first.batch_id in room.budgets:
                jobs_max = min(jobs_max, affordable_jobs(room.budgets[first.batch_id], cost))
                if jobs_max == 0:
                    room.held_batches.add(first.batch_id)
                    continue
            if spans := line.take(lane, jobs_max):
                record = _record(choice, first, spans, now_us)
                room.shards_left -= 1
                room.rooms[record.lane].take(record.tenant_id, record.jobs_count, beside=record.beside)
                if first.batch_id in room.budgets:
                    room.budgets[first.batch_id] -= record.hold_nano_usd
                return record
        return None


def _record(choice: Choice, first: WaitingSpan, spans: list[ShardSpan], now_us: int) -> shards.ShardRecord:
    lane = choice.lane
    jobs_count = sum(span.jobs_count for span in spans)
    ahead_seconds = jobs_count / lane.jobs_per_second + 2 * lane.shard_seconds
    return shards.ShardRecord(
        shard_id=new_id(),
        tenant_id=choice.assignment.tenant_id,
        group_id=choice.assignment.group_id,
        batch_id=first.batch_id,
        lane=choice.candidate.lane,
        assignment_id=choice.assignment.assignment_id,
        reason=choice.reason,
        jobs_count=jobs_count,
        created_us=now_us,
        claim_by_us=now_us + int((CLAIM_SECONDS + ahead_seconds) * 1_000_000),
        hold_nano_usd=jobs_count * choice.candidate.expected_job_cost_nano_usd,
        spans=spans,
        beside=choice.entry.beside,
    )


def _shard_span(span: WaitingSpan, index: int, job_id: bytes, length: int) -> ShardSpan:
    return ShardSpan(
        index,
        job_id,
        length,
        span.attempt_number,
        span.failures,
        span.crashes,
        span.alone,
        span.body_bytes_max,
        span.deadline_us,
    )


def _not_ended(connection: Connection, span: WaitingSpan, count: int) -> list[tuple[bytes, int]]:
    """The parts of the span's first `count` jobs that still need to run; all of it on a first attempt."""
    first = span.first_job_id
    if span.attempt_number == 1:
        return [(first, count)]
    ended = ended_jobs(connection, first, id_at(first, count - 1))
    parts: list[tuple[bytes, int]] = []
    for job_id in ids_of_span(first, count):
        if job_id in ended:
            continue
        if parts and id_offset(parts[-1][0], job_id) == parts[-1][1]:
            parts[-1] = (parts[-1][0], parts[-1][1] + 1)
        else:
            parts.append((job_id, 1))
    return parts
