"""Dispatcher: earliest deadline first, cut a shard from the group and give it to the cheapest allowed lane with room.

Late binding: work waits in the database until a lane has room, and a lane holds at most one shard per slot
beyond those running, so that no slot waits on the broker and little is bound early.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import structlog

from broker.clock import Clock
from broker.database import batches, jobs, plans, ready, shards
from broker.database.connection import Connection, Database
from broker.database.plans import Assignment
from broker.domain.ids import id_at, id_offset, ids_of_span, new_id
from broker.domain.job import WaitingSpan
from broker.domain.lane import Lane
from broker.domain.shard import ShardSpan
from broker.ledger.writing import ended_jobs
from broker.rules.planning import Candidate, pick_lane
from broker.rules.sharding import jobs_per_shard
from broker.wakeups import Topic, Wakeups

__all__ = ["CLAIM_SECONDS", "Dispatcher"]

CLAIM_SECONDS = 30.0
"""How long a shard may lie unclaimed, beyond the work expected ahead of it."""

_SPANS_PER_SHARD = 64
_SHARDS_PER_STEP = 32

_log = structlog.get_logger(__name__)


class _Room(msgspec.Struct):
    """What one step may still do."""

    free: dict[str, int]
    held_batches: set[bytes]
    shards_left: int = _SHARDS_PER_STEP


class Dispatcher:
    """Turns waiting spans into shards."""

    def __init__(self, database: Database, lanes: Sequence[Lane], clock: Clock, wakeups: Wakeups) -> None:
        self._database = database
        self._lanes = {str(lane.name): lane for lane in lanes}
        self._clock = clock
        self._wakeups = wakeups
        self._generation = 0
        self._assignments: dict[bytes, Assignment] = {}

    def step(self) -> int:
        """Dispatch what there is room for; the number of shards written."""
        written, unplanned = self._database.write(self._dispatch)
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
        self._follow_plan(connection)
        room = self._room(connection)
        unplanned = False
        records: list[shards.ShardRecord] = []
        now_us = self._clock()
        for group in ready.waiting_groups(connection, now_us) if any(room.free.values()) else ():
            assignment = self._assignments.get(group.group_id)
            if assignment is None:
                unplanned = True
                continue
            while room.shards_left and (choice := pick_lane(assignment.plan, room.free)):
                record = self._cut(connection, assignment, choice, room, now_us)
                if record is None:
                    break
                records.append(record)
        shards.write_shards(connection, records)
        for record in records:
            _log.info("shard_dispatched", shard=record.shard_id.hex(), lane=record.lane, jobs=record.jobs_count)
        return len(records), unplanned

    def _follow_plan(self, connection: Connection) -> None:
        generation = plans.current_generation(connection)
        if generation != self._generation:
            self._assignments = plans.load_generation(connection, generation)
            self._generation = generation

    def _room(self, connection: Connection) -> _Room:
        taken = shards.open_shards(connection)
        free = {name: 2 * lane.slots - taken.get(name, 0) for name, lane in self._lanes.items()}
        return _Room(free, held_batches=set())

    def _cut(
        self,
        connection: Connection,
        assignment: Assignment,
        choice: tuple[Candidate, str],
        room: _Room,
        now_us: int,
    ) -> shards.ShardRecord | None:
        """One shard of the group for the chosen lane; None when nothing of the group is left to give."""
        candidate, reason = choice
        lane = self._lanes[candidate.lane]
        while True:
            waiting = ready.next_spans(connection, assignment.group_id, now_us, room.held_batches, _SPANS_PER_SHARD)
            if not waiting:
                return None
            batch_id = waiting[0].batch_id
            affordable = self._affordable_jobs(connection, batch_id, candidate) if batch_id else None
            if batch_id is None or affordable is None or affordable > 0:
                break
            room.held_batches.add(batch_id)
        spans = _take_spans(connection, lane, waiting, affordable)
        if not spans:
            return self._cut(connection, assignment, choice, room, now_us)
        room.free[candidate.lane] -= 1
        room.shards_left -= 1
        return self._record(connection, assignment, candidate, reason, waiting[0], spans, now_us)

    @staticmethod
    def _affordable_jobs(connection: Connection, batch_id: bytes, candidate: Candidate) -> int | None:
        """How many jobs the batch's budget still covers, beside what is spent and held; None without a budget."""
        record = batches.get(connection, batch_id)
        if record is None or record.max_cost_nano_usd is None:
            return None
        spent = batches.progress(connection, batch_id).cost_nano_usd + shards.held_nano_usd(connection, batch_id)
        return max(0, record.max_cost_nano_usd - spent) // max(1, candidate.expected_job_cost_nano_usd)

    def _record(
        self,
        connection: Connection,
        assignment: Assignment,
        candidate: Candidate,
        reason: str,
        first: WaitingSpan,
        spans: list[ShardSpan],
        now_us: int,
    ) -> shards.ShardRecord:
        lane = self._lanes[candidate.lane]
        jobs_count = sum(span.jobs_count for span in spans)
        ahead_seconds = jobs_count / lane.jobs_per_second + 2 * lane.shard_seconds
        group = jobs.load_groups(connection, [assignment.group_id])[0]
        return shards.ShardRecord(
            shard_id=new_id(),
            tenant_id=group.key.tenant_id,
            group_id=assignment.group_id,
            batch_id=first.batch_id,
            lane=candidate.lane,
            assignment_id=assignment.assignment_id,
            reason=reason,
            jobs_count=jobs_count,
            created_us=now_us,
            claim_by_us=now_us + int((CLAIM_SECONDS + ahead_seconds) * 1_000_000),
            hold_nano_usd=jobs_count * candidate.expected_job_cost_nano_usd,
            spans=spans,
        )


def _take_spans(
    connection: Connection, lane: Lane, waiting: list[WaitingSpan], affordable: int | None
) -> list[ShardSpan]:
    """Take jobs of the first span's batch out of the line, up to what the lane's shards carry.

    Empty when every job looked at had ended meanwhile (a late result won), and left the line for that.
    """
    first = waiting[0]
    room = min(jobs_per_shard(lane, span) for span in waiting if span.batch_id == first.batch_id)
    if affordable is not None:
        room = min(room, affordable)
    taken: list[ShardSpan] = []
    index = 0
    for span in waiting:
        if index >= room or span.batch_id != first.batch_id or (span.alone and index):
            break
        count = min(span.jobs_count, room - index)
        ready.take(connection, span, count)
        for job_id, length in _not_ended(connection, span, count):
            taken.append(
                ShardSpan(
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
            )
            index += length
    return taken


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
