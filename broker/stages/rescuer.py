"""Rescuer: work that its worker will not finish travels on under a new shard id.

A shard that nobody claimed in time goes back as it was, sooner where a worker that fell silent may have
fetched it. One whose worker fell silent goes back too, with the jobs that were running as suspects if that
happened before; its late results still count for a while, and the first valid success wins. After a gap in
which no rescuer looked or no lease door answered, and when the clock was set back, it rests two thirds of a
lease, in which every living worker renews, so that an outage of ours never re-executes everything.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import msgspec
import structlog

from broker.clock import Clock
from broker.database import jobs, shards, workers
from broker.database.connection import Connection, Database
from broker.database.failures import is_passing
from broker.database.fencing import alone
from broker.database.shards import ShardRecord
from broker.database.stranded import stranded_shards
from broker.domain.errors import ErrorCode
from broker.domain.events import JobRan
from broker.domain.job import WaitingSpan
from broker.domain.lane import Lane
from broker.domain.outcome import Outcome
from broker.domain.shard import Bitmap, ShardState
from broker.domain.usage import Usage
from broker.ledger.digests import Decisions
from broker.ledger.ending import AttemptEnds
from broker.ledger.lost_costs import upper_costs
from broker.ledger.prices import PricedLanes
from broker.ledger.streams import FixedSlot, OwnStream, StreamSlot
from broker.ledger.writing import ended_among
from broker.rules.regrouping import another_try, regroup, waiting_job
from broker.rules.settling import Ended, Retry, settle
from broker.wakeups import Topic, Wakeups

__all__ = ["LATE_SECONDS", "Rescuer"]

T = TypeVar("T")

LATE_SECONDS = 900.0
"""How long a taken-back shard's late results are still awaited before its attempts are written off as lost."""

_SHARDS_PER_STEP = 64
_LEFT_US = 60_000_000
_BEAT = "rescuer"

_LOST_MESSAGES = {
    ErrorCode.LEASE_LOST: "the worker fell silent while it ran",
    ErrorCode.INTERRUPTED: "the broker's own process ended while it ran",
}

_ONLY_SLOT = FixedSlot("rescuer-0")

_log = structlog.get_logger(__name__)


class Rescuer:
    """Takes shards back.

    `door_heard_us` says when the lease door was last known to answer, where it is another process; `capacity`
    how many shards each lane's live workers run: what a lane without any has not begun is not waited for.
    """

    def __init__(
        self,
        *,
        database: Database,
        lanes: Sequence[Lane],
        clock: Clock,
        wakeups: Wakeups,
        lease_seconds: float,
        slot: StreamSlot = _ONLY_SLOT,
        door_heard_us: Callable[[Connection], int | None] | None = None,
        capacity: Callable[[Connection], Mapping[str, int]] | None = None,
    ) -> None:
        self._database = database
        self._lanes = PricedLanes(lanes)
        self._decisions = Decisions()
        self._clock = clock
        self._wakeups = wakeups
        self._lease_us = int(lease_seconds * 1_000_000)
        self._rest_us = self._lease_us * 2 // 3
        self._own = OwnStream(database, clock, slot)
        self._stream = self._own.current()
        self._door_heard_us = door_heard_us
        self._capacity = capacity
        self._last_step_us = clock()
        self._rest_until_us = self._last_step_us
        self._left: set[bytes] = set()
        self._left_until_us = 0

    def step(self) -> int:
        """Take back what is due; how many shards that was."""
        now_us = self._clock()
        gap_us = max(self._own_gap_us(now_us), self._door_gap_us(now_us), key=abs)
        # Below 0 the clock was set back. A shorter gap leaves every worker time to renew before its lease ends: it asks
        # again a second after it asked in vain, which takes it up to five.
        if not 0 <= gap_us <= self._lease_us // 2:
            self._rest_until_us = now_us + self._rest_us
            _log.warning("rescue_rested", after_gap_seconds=gap_us / 1_000_000)
        self._last_step_us = now_us
        if now_us < self._rest_until_us:
            return 0
        self._stream = self._own.current()
        taken = 0
        for count, ended in self._apart(self._silent, self._take_back_silent):
            taken += count
            if count:
                self._wakeups.notify(Topic.DISPATCHER)
                self._wakeups.endings.announce(ended)
        self._apart(self._late, self._write_off_late)
        return taken

    def _own_gap_us(self, now_us: int) -> int:
        """How long no rescuer looked: one that takes over from another has missed nothing while it stood by."""
        if self._door_heard_us is None:
            return now_us - self._last_step_us

        def work(connection: Connection) -> int | None:
            last_us = workers.beat_us(connection, _BEAT)
            workers.beat(connection, _BEAT, now_us)
            return last_us

        last_us = self._database.write(work, durable=False)
        return now_us - (self._last_step_us if last_us is None else last_us)

    def _door_gap_us(self, now_us: int) -> int:
        """How long nobody may have been able to renew."""
        if self._door_heard_us is None:
            return 0
        heard_us = self._database.read(self._door_heard_us)
        return self._lease_us if heard_us is None else max(0, now_us - heard_us)

    def recover(self) -> int:
        """At the start of the embedded form: whatever was under way died with the process, so all of it goes on.

        Nothing speaks against the jobs that were running, so none of them loses a try.
        """

        def work(connection: Connection) -> int:
            now_us = self._clock()
            held = shards.held_shards(connection) + shards.unclosed_taken_back(connection, now_us, 1_000_000)
            for start in range(0, len(held), _SHARDS_PER_STEP):
                self._write_off(connection, held[start : start + _SHARDS_PER_STEP], ErrorCode.INTERRUPTED, now_us)
            return len(held)

        recovered = self._database.write(work)
        if recovered:
            _log.info("shards_recovered", shards=recovered)
        return recovered

    def _apart(
        self, find: Callable[[Connection], Collection[bytes]], work: Callable[[Connection, Collection[bytes]], T]
    ) -> list[T]:
        """What `work` returned of the shards found; where one of them fails it, of each by itself, without that one.

        One that can't be dealt with, of a lane that nobody here knows, say, is left for a minute.
        """
        now_us = self._clock()
        if now_us >= self._left_until_us:
            self._left.clear()
        try:
            return [self._database.write(partial(_alone, find=find, work=work))]
        except Exception as error:
            if is_passing(error):
                raise
        done = []
        for shard_id in self._database.read(find):
            try:
                done.append(self._database.write(partial(_alone, find=partial(_just, shard_id), work=work)))
            except Exception as error:
                if is_passing(error):
                    raise
                _log.exception("shard_left", shard=shard_id.hex())
                self._left.add(shard_id)
                self._left_until_us = now_us + _LEFT_US
        return done

    def _silent(self, connection: Connection) -> list[bytes]:
        """The shards that are due, or look so, without those that were left."""
        now_us, limit = self._clock(), _SHARDS_PER_STEP + len(self._left)
        stranded = stranded_shards(connection, now_us, limit)
        silent = shards.silent_shards(connection, now_us, self._lease_us, self._manned(connection), limit)
        return sorted({*silent, *stranded} - self._left)

    def _take_back_silent(self, connection: Connection, due: Collection[bytes]) -> tuple[int, list[bytes]]:
        """How many shards were taken back, and which single jobs ended with it."""
        if not due:
            return 0, []
        now_us = self._clock()
        manned = self._manned(connection)
        stranded = set(stranded_shards(connection, now_us, _SHARDS_PER_STEP + len(self._left)))
        # What its worker claimed or renewed, or the recorder closed, between the two looks is not silent.
        records = [
            record
            for record in shards.load(connection, sorted(due), lock=True).values()
            if (record.state is ShardState.SENT and record.shard_id in stranded)
            or shards.is_silent(record, now_us, self._lease_us, manned)
        ]
        ends = self._new_ends(connection, records, now_us)
        retries: list[WaitingSpan] = []
        ended = ended_among(connection, _running_jobs(records))
        for record in records:
            _log.warning("shard_taken_back", shard=record.shard_id.hex(), lane=record.lane, was=record.state)
            if record.state is ShardState.SENT:
                ends.give_back(record, record.recorded.missing(record.jobs_count))
                record.closed_us = now_us
            else:
                retries += self._take_back_running(connection, ends, record, ended, now_us)
            record.state = ShardState.TAKEN_BACK
        ends.write()
        jobs.wait(connection, regroup(retries))
        shards.save_recorded(connection, records)
        return len(records), ends.ended_singles

    def _new_ends(self, connection: Connection, records: Collection[ShardRecord], now_us: int) -> AttemptEnds:
        """For all of these shards together."""
        self._lanes.look(connection, {record.lane for record in records})
        self._decisions.look(connection, records)
        return AttemptEnds(connection, *self._stream, now_us, self._decisions)

    def _manned(self, connection: Connection) -> list[str] | None:
        """The lanes with live workers; None where that is not known."""
        if self._capacity is None:
            return None
        return [lane for lane, slots in self._capacity(connection).items() if slots]

    def _take_back_running(
        self,
        connection: Connection,
        ends: AttemptEnds,
        record: ShardRecord,
        ended: Collection[bytes],
        now_us: int,
    ) -> list[WaitingSpan]:
        """The jobs that go on at once; their attempts stay open for late results, but for those that end here."""
        missing = record.recorded.missing(record.jobs_count)
        running = _running(record, missing)
        lane = self._lanes.at(record.lane, record.created_us)
        shares = upper_costs(connection, lane, record, missing, now_us)
        ends.give_back(record, [index for index in missing if index not in running])
        retries: list[WaitingSpan] = []
        for index in missing:
            if index not in running:
                continue
            then = _follow(record, index, has_ended=record.job_id_at(index) in ended)
            if isinstance(then, Ended):
                record.recorded.add(index)
                ends.add(record, lane, _lost(record, index, ErrorCode.LEASE_LOST, now_us), shares[index])
            elif then is not None:
                waited = waiting_job(record.span_at(index), index, record.group_id, record.batch_id)
                retries.append(another_try(waited, record.lane, then, now_us))
        return retries

    def _late(self, connection: Connection) -> list[bytes]:
        """The shards whose late results are not awaited any longer, without those that were left."""
        before_us, limit = self._clock() - int(LATE_SECONDS * 1_000_000), _SHARDS_PER_STEP + len(self._left)
        return [one for one in shards.unclosed_taken_back(connection, before_us, limit) if one not in self._left]

    def _write_off_late(self, connection: Connection, due: Collection[bytes]) -> None:
        self._write_off(connection, due, ErrorCode.LEASE_LOST, self._clock())

    def _write_off(self, connection: Connection, due: Collection[bytes], code: ErrorCode, now_us: int) -> None:
        """Close shards whose results no longer come; attempts that ran are lost, at an unknown cost with a bound.

        A shard taken back earlier has sent its jobs on already; here only its attempts are written.
        """
        if not due:
            return
        records = shards.load(connection, sorted(due), lock=True).values()
        ends = self._new_ends(connection, records, now_us)
        for record in records:
            missing = record.recorded.missing(record.jobs_count)
            sent_on = record.state is ShardState.TAKEN_BACK
            if record.claimed_us is None:
                ends.give_back(record, missing)
            else:
                if sent_on:
                    running = _running(record, missing)
                    missing = [index for index in missing if index in running]
                # One taken back before had lost its worker, whatever ended since.
                why = ErrorCode.LEASE_LOST if sent_on else code
                lane = self._lanes.at(record.lane, record.created_us)
                shares = upper_costs(connection, lane, record, missing, now_us)
                for index in missing:
                    record.recorded.add(index)
                    ends.add(record, lane, _lost(record, index, why, now_us), shares[index], sent_on=sent_on)
        ends.write()
        for record in records:  # not before its attempts have said what it was
            record.state, record.closed_us = ShardState.TAKEN_BACK, now_us
        shards.save_recorded(connection, records)


def _alone(
    connection: Connection,
    find: Callable[[Connection], Collection[bytes]],
    work: Callable[[Connection, Collection[bytes]], T],
) -> T:
    alone(connection, "rescuer")
    return work(connection, find(connection))


def _just(shard_id: bytes, _connection: Connection) -> list[bytes]:
    return [shard_id]


def _running(record: ShardRecord, missing: list[int]) -> Bitmap:
    """The indices that its worker said its engine held; before it said anything, all that are missing."""
    return Bitmap(record.running) if record.running is not None else Bitmap.of(missing)


def _running_jobs(records: Collection[ShardRecord]) -> Iterator[bytes]:
    for record in records:
        if record.state is not ShardState.SENT:
            missing = record.recorded.missing(record.jobs_count)
            running = _running(record, missing)
            yield from (record.job_id_at(index) for index in missing if index in running)


def _follow(record: ShardRecord, index: int, *, has_ended: bool) -> Ended | Retry | None:
    span = record.span_at(index)
    then = settle(
        Outcome.LOST,
        ErrorCode.LEASE_LOST,
        has_ended,
        attempt_number=span.attempt_number,
        failures=span.failures,
        crashes=span.crashes,
        alone=span.alone,
    ).then
    if isinstance(then, Retry) and span.attempt_number == 1:
        # Machines are taken away far more often than a job takes its worker along, and jobs that run alone
        # take the places of whole shards: only what is lost a second time is a suspect.
        return msgspec.structs.replace(then, alone=False)
    return then


def _lost(record: ShardRecord, index: int, code: ErrorCode, now_us: int) -> JobRan:
    started_us = record.claimed_us or record.created_us
    ended_us = max(started_us, min(now_us, record.lease_until_us or now_us))
    return JobRan(
        index=index,
        outcome=Outcome.LOST,
        status_code=0,
        started_us=started_us,
        ended_us=ended_us,
        run_us=ended_us - started_us,
        usage=Usage(),
        body=b"",
        error_code=code,
        message=_LOST_MESSAGES[code],
    )
