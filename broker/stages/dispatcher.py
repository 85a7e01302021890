"""Dispatcher: cut shards from the groups whose turn it is, for the lanes that dealing chose for them.

Late binding: work waits in the database until a lane has room: for its engines' places, and about as much again that
waits for them, so that no place waits on the broker and little is bound early.
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
from broker.domain.ids import id_at, ids_of_span, new_id
from broker.domain.job import WaitingSpan
from broker.domain.lane import Lane
from broker.domain.shard import ShardSpan
from broker.health import HealthBook
from broker.ledger.writing import ended_jobs
from broker.rules.cutting import Cursor
from broker.rules.placement.dealing import deal
from broker.rules.placement.policy import Policy
from broker.rules.placement.turns import Hand
from broker.rules.pricing import affordable_jobs, hold_nano_usd
from broker.stages.dealing import Choice, Dealing, Room, Waiting
from broker.wakeups import Topic, Wakeups

__all__ = ["CLAIM_SECONDS", "SHARDS_PER_STEP", "Dispatcher"]

CLAIM_SECONDS = 15.0
"""How long a shard may lie unclaimed, beyond the work expected ahead of it. What a bus has lost waits that long; what
was merely slow goes to the lane again, and its first message is refused at the lease door.
"""

_SPANS_PER_LOAD = 256
_PAGES_MAX = 32
"""Of a group, in one step: jobs that no lane with room takes now don't hold up those behind them."""

SHARDS_PER_STEP = 32

_US = 1_000_000

_log = structlog.get_logger(__name__)


class _Line:
    """A group's line during one step: loaded in pages as needed, each cut in memory and written back once.

    `for_trial`: what was tried least comes first, for one of its jobs is to try a lane, and those that failed already
    must not keep it from working.
    """

    def __init__(self, connection: Connection, page: ready.Page, preemptions_max: int, *, for_trial: bool) -> None:
        self._connection = connection
        self._page = page
        self._preemptions_max = preemptions_max
        self._for_trial = for_trial
        self._pages = 0
        self._cursor = Cursor([], self._preemptions_max)

    def first(self, bytes_max: int) -> WaitingSpan | None:
        """The span that is next, earliest deadline first, of those with bodies up to `bytes_max`.

        None when nothing of the group may go, or no lane takes what may.
        """
        while (span := self._cursor.first(self._page.held_batches, bytes_max)) is None:
            if not self._load(bytes_max):
                return None
        return span

    def pass_over(self) -> None:
        """No lane takes now what is next."""
        self._cursor.pass_over()

    def take(self, lane: Lane, jobs_max: int) -> list[ShardSpan]:
        """Jobs of the first span's batch, up to `jobs_max` and to what the lane's shards carry, out of the line.

        Empty when every job looked at had ended meanwhile (a late result won), and left the line for that.
        """
        taken: list[ShardSpan] = []
        index = 0
        for span in self._cursor.take(lane, jobs_max):
            for part in _not_ended(self._connection, span):
                taken.append(_shard_span(part, index))
                index += part.jobs_count
        return taken

    def write_back(self) -> None:
        """Delete the rows that were used up, and put back what remains of them."""
        changes = self._cursor.changes()
        ready.withdraw(self._connection, changes.used)
        jobs.wait(self._connection, changes.put_back)
        self._cursor = Cursor([], self._preemptions_max)

    def _load(self, bytes_max: int) -> bool:
        self.write_back()
        if self._pages == _PAGES_MAX or (self._for_trial and self._pages):
            return False
        self._pages += 1
        page = msgspec.structs.replace(self._page, bytes_max=bytes_max)
        spans = (ready.least_tried_spans if self._for_trial else ready.next_spans)(self._connection, page)
        if spans:
            self._page = msgspec.structs.replace(page, after=(spans[-1].deadline_us, spans[-1].first_job_id))
        self._cursor = Cursor(spans, self._preemptions_max)
        return bool(spans)


class Dispatcher:
    """Turns waiting spans into shards."""

    def __init__(
        self,
        database: Database,
        lanes: Sequence[Lane],
        clock: Clock,
        wakeups: Wakeups,
        health: HealthBook,
        capacity: Capacity,
        policy: Policy | None = None,
    ) -> None:
        self._database = database
        self._preemptions_max = (policy or Policy()).preemptions_max
        self._health = health
        self._dealing = Dealing(lanes, health, capacity, policy)
        self._clock = clock
        self._wakeups = wakeups

    def step(self) -> int:
        """Dispatch what there is room for; the number of shards written, at most SHARDS_PER_STEP."""
        records, unplanned = self._database.write(self._dispatch, durable=False)
        if unplanned:
            self._wakeups.notify(Topic.PLANNER)
        if records:
            self._dealing.note_sent({record.lane for record in records}, self._clock() / _US)
            self._wakeups.notify(Topic.RELAY)
        return len(records)

    def seconds_until_due(self, longest_seconds: float) -> float:
        """How long nothing new can become due, at most `longest_seconds`."""
        now_us = self._clock()
        due_us = self._database.read(lambda connection: ready.next_due_us(connection, now_us))
        soonest = min((rest.left_s for rest in self._health.resting().values()), default=longest_seconds)
        if due_us is not None:
            soonest = min(soonest, (due_us - now_us) / _US)
        return min(longest_seconds, max(0.0, soonest))

    def _dispatch(self, connection: Connection) -> tuple[list[shards.ShardRecord], bool]:
        if ready.is_empty(connection):
            return [], False
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
        return records, unplanned

    def _deal(self, connection: Connection, hand: Hand[Waiting], room: Room, now_us: int) -> list[shards.ShardRecord]:
        """One shard after another, each of the group whose turn it is, while there is room."""
        lines: dict[bytes, _Line] = {}
        records: list[shards.ShardRecord] = []

        def give(waiting: Waiting) -> float | None:
            if not self._dealing.has_room(waiting, room):
                return None
            line = lines.get(waiting.group_id)
            if line is None:
                page = ready.Page(
                    group_id=waiting.group_id,
                    now_us=now_us,
                    held_batches=room.held_batches,
                    bytes_max=0,
                    spans_max=_SPANS_PER_LOAD,
                )
                for_trial = self._dealing.only_trials(waiting, room)
                line = lines[waiting.group_id] = _Line(connection, page, self._preemptions_max, for_trial=for_trial)
            record = self._cut(line, waiting, room, now_us)
            if record is None:
                return None
            records.append(record)
            return self._dealing.work(waiting, record.lane, record.jobs_count)

        deal(hand, lambda: room.shards_left > 0, give)
        for line in lines.values():
            line.write_back()
        return records

    def _cut(self, line: _Line, waiting: Waiting, room: Room, now_us: int) -> shards.ShardRecord | None:
        """One shard of the group for a lane with room; None when nothing of the group is left to give.

        A span that no lane with room carries holds up none behind it.
        """
        while (first := line.first(self._dealing.bytes_max(waiting, room))) is not None:
            choice = self._dealing.choose(waiting, first, room)
            if choice is None:
                line.pass_over()
                continue
            lane, cost = choice.lane, choice.candidate.expected_job_cost_nano_usd
            jobs_max = min(lane.shard_jobs_max, choice.entry.jobs_max)
            budget_left = room.budgets.get(first.batch_id) if first.batch_id else None
            if first.batch_id and budget_left is not None:
                jobs_max = min(jobs_max, affordable_jobs(budget_left, cost))
                if jobs_max == 0:
                    room.held_batches.add(first.batch_id)
                    continue
            if spans := line.take(lane, jobs_max):
                there = room.rooms[choice.candidate.lane]
                ahead_s = max(0, there.jobs_waiting) / (lane.jobs_per_second * max(1, there.slots))
                record = _record(choice, first, spans, now_us, budget_left, ahead_s)
                room.shards_left -= 1
                there.take(record.tenant_id, record.jobs_count, beside=record.beside, alone=first.alone)
                if first.batch_id in room.budgets:
                    room.budgets[first.batch_id] -= record.hold_nano_usd
                return record
        return None


def _record(
    choice: Choice, first: WaitingSpan, spans: list[ShardSpan], now_us: int, budget_left: int | None, ahead_s: float
) -> shards.ShardRecord:
    """`ahead_s`: the expected work that waits at its lane already."""
    lane = choice.lane
    jobs_count = sum(span.jobs_count for span in spans)
    cost = choice.candidate.expected_job_cost_nano_usd
    ahead_seconds = ahead_s + jobs_count / lane.jobs_per_second + 2 * lane.shard_seconds
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
        hold_nano_usd=0 if budget_left is None else hold_nano_usd(jobs_count, cost, budget_left),
        spans=spans,
        beside=choice.entry.beside,
    )


def _shard_span(span: WaitingSpan, index: int) -> ShardSpan:
    return ShardSpan(
        index,
        span.first_job_id,
        span.jobs_count,
        span.attempt_number,
        span.failures,
        span.crashes,
        span.alone,
        span.body_bytes_max,
        span.deadline_us,
        span.failed_lanes,
        span.preemptions,
        span.beginning,
        span.beginnings,
        span.submitted_us,
    )


def _not_ended(connection: Connection, span: WaitingSpan) -> list[WaitingSpan]:
    """The parts of the span that still need to run; all of it on a first attempt."""
    if span.attempt_number == 1:
        return [span]
    first, count = span.first_job_id, span.jobs_count
    ended = ended_jobs(connection, first, id_at(first, count - 1))
    parts: list[WaitingSpan] = []
    start: int | None = None
    for offset, job_id in enumerate([*ids_of_span(first, count), None]):
        if job_id is None or job_id in ended:
            if start is not None:
                parts.append(span.part(start, offset - start))
            start = None
        elif start is None:
            start = offset
    return parts
