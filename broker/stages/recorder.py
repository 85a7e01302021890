"""Recorder: what the workers say happened becomes the ledger, one transaction per flush.

It locks the shards in id order, drops the indices already recorded, and writes attempts, outcomes, results,
counters, retries and the Merkle batch record together. Only then are the events acknowledged, so a crash
in between repeats them, and repeating them changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar, assert_never

import structlog

from broker.bus.envelope import EnvelopeError, UnknownKeyError, open_event
from broker.bus.late_keys import LateKeys
from broker.clock import Clock
from broker.database import shards
from broker.database.connection import Connection, Database
from broker.database.shards import ShardRecord
from broker.domain.errors import ErrorCode
from broker.domain.events import JobRan, JobsRan, ShardReturned, WorkerEvent
from broker.domain.lane import Lane
from broker.domain.outcome import Outcome
from broker.domain.shard import ShardState
from broker.health import HealthBook
from broker.ledger.digests import Decisions
from broker.ledger.ending import AttemptEnds
from broker.ledger.prices import PricedLanes
from broker.ledger.streams import FixedSlot, OpenStream, OwnStream, StreamSlot
from broker.rules.evidence import Evidence, evidence_of
from broker.rules.streaks import Streaks
from broker.signing import KeyRing
from broker.wakeups import Topic, Wakeups

__all__ = ["Delivered", "NotRecorded", "Recorder"]

_ONLY_SLOT = FixedSlot("recorder-0")

_log = structlog.get_logger(__name__)


class Delivered(Protocol):
    """A message as the recorder sees it; `broker.bus.inbox.Delivery` is one."""

    @property
    def queue(self) -> str:
        """The lane's events queue that it came over."""

    @property
    def envelope(self) -> bytes:
        """The signed bytes."""


class _News:
    """An event, and what its jobs' ends say about its lane.

    `in_company`: the indices of those that failed while their worker did others; `failed`: the jobs that did;
    `failed_once`: the indices of those that so failed for a first time; `done`: how many succeeded. `fault`: the last
    that speaks against the lane, and for how many seconds its server asks to be left alone. `is_well`: it succeeded
    after that.
    """

    __slots__ = ("done", "event", "failed", "failed_once", "fault", "has_succeeded", "in_company", "is_well")

    def __init__(self, event: WorkerEvent) -> None:
        self.event = event
        self.in_company: set[int] = set()
        self.failed: set[bytes] = set()
        self.failed_once: set[int] = set()
        self.done = 0
        self.fault: tuple[ErrorCode, int] | None = None
        self.has_succeeded = False
        self.is_well = False


D = TypeVar("D", bound=Delivered)


class NotRecorded(NamedTuple, Generic[D]):
    """What is nobody's event, for the dead letters; and what may be, signed with a key that isn't known yet."""

    rejected: list[D]
    put_off: list[D]


class _Written(NamedTuple):
    """The single jobs that ended, and by index which events were none of their lane's or worker's, and why."""

    ended: list[bytes]
    foreign: list[tuple[int, str]]


class Recorder:
    """Records the events of the lanes it was given; what one lane failed, those `in_catalog` may be asked to do."""

    def __init__(
        self,
        *,
        database: Database,
        lanes: Sequence[Lane],
        ring: KeyRing,
        clock: Clock,
        wakeups: Wakeups,
        health: HealthBook,
        slot: StreamSlot = _ONLY_SLOT,
        in_catalog: Sequence[Lane] | None = None,
    ) -> None:
        self._database = database
        self._lanes = PricedLanes(lanes)
        self._in_catalog = lanes if in_catalog is None else in_catalog
        self._streaks = Streaks()
        self._decisions = Decisions()
        self._lane_of_queue = {lane.events_queue: str(lane.name) for lane in lanes}
        self._ring = ring
        self._late_keys = LateKeys(ring)
        self._clock = clock
        self._wakeups = wakeups
        self._health = health
        self._stream = OwnStream(database, clock, slot)

    def record(self, deliveries: Sequence[D]) -> NotRecorded[D]:
        """Make these events durable; the caller acknowledges them when this returns, but for those that were not."""
        left: NotRecorded[D] = NotRecorded([], [])
        events = self._verified(deliveries, left)
        if events:
            stream = self._stream.current()
            news = [self._news_of(event) for event in events.values()]
            written = self._database.write(lambda connection: self._write(connection, news, stream))
            for one in news:
                who = (one.event.lane, one.event.worker_id)
                for job_id in one.failed:
                    self._streaks.note_job(*who, job_id)
                self._streaks.note_ends(*who, one.done, len(one.failed_once))
            self._wakeups.notify(Topic.DISPATCHER, Topic.ASSEMBLER)
            self._wakeups.endings.announce(written.ended)
            for one in news:
                self._tell_health(one)
            of_index = list(events)
            for index, reason in written.foreign:
                delivery = deliveries[of_index[index]]
                _log.warning("event_rejected", queue=delivery.queue, reason=reason)
                left.rejected.append(delivery)
        return left

    def _verified(self, deliveries: Sequence[D], left: NotRecorded[D]) -> dict[int, WorkerEvent]:
        """The events that are what they claim to be; a lane speaks for its own shards only, over its own queue."""
        events: dict[int, WorkerEvent] = {}
        since = time.monotonic()
        for index, delivery in enumerate(deliveries):
            try:
                opened = open_event(self._ring, delivery.envelope, self._clock())
            except UnknownKeyError as error:
                if self._late_keys.may_come(delivery, error.key_id, since):
                    left.put_off.append(delivery)
                    continue
                reason = str(error)
            except EnvelopeError as error:
                reason = str(error)
            else:
                if opened.owner == opened.body.lane == self._lane_of_queue.get(delivery.queue):
                    events[index] = opened.body
                    continue
                reason = f"signed by lane {opened.owner}"
            _log.warning("event_rejected", queue=delivery.queue, reason=reason)
            left.rejected.append(delivery)
        return events

    def _write(self, connection: Connection, news: list[_News], stream: OpenStream) -> _Written:
        now_us = self._clock()
        records = shards.load(connection, sorted({one.event.shard_id for one in news}), lock=True)
        self._lanes.look(connection)
        self._decisions.look(connection, records.values())
        ends = AttemptEnds(connection, *stream, now_us, self._decisions, self._in_catalog)
        touched: dict[bytes, ShardRecord] = {}
        foreign: list[tuple[int, str]] = []
        for index, one in enumerate(news):
            event = one.event
            record = records.get(event.shard_id)
            if record is None or record.lane != event.lane:
                foreign.append((index, "it names a shard of another lane, or none"))
                continue
            if record.worker_id != event.worker_id:
                foreign.append((index, "the shard was never this worker's"))
                continue
            self._apply(ends, record, one, now_us)
            touched[record.shard_id] = record
        ends.write()
        shards.save_recorded(connection, touched.values())
        _log.info("events_recorded", shards=len(touched), jobs=ends.attempts_count)
        return _Written(ends.ended_singles, foreign)

    def _news_of(self, event: WorkerEvent) -> _News:
        """What its ends say about the lane. Found out once, in order, before a transaction that may run twice."""
        news, after_success = _News(event), False
        for ran in event.jobs if isinstance(event, JobsRan) else ():
            if ran.outcome is Outcome.SUCCEEDED:
                news.done += 1
                if not after_success:  # a success right after another says nothing new
                    self._streaks.note_success(event.lane, event.worker_id, ran.ended_us)
                    news.is_well = news.has_succeeded = after_success = True
                continue
            after_success = False
            who = (event.lane, event.worker_id)
            if self._streaks.note_failure(*who, ran.outcome, ran.error_code, ran.started_us):
                news.in_company.add(ran.index)
            code = ran.error_code if ran.outcome is Outcome.FAILED else None
            if code and self._streaks.is_at_fault(event.lane, code, ran.retry_after_s):
                news.fault = (code, max(ran.retry_after_s, news.fault[1] if news.fault else 0))
                news.is_well = False
        return news

    def _is_in_company(self, news: _News, record: ShardRecord, ran: JobRan) -> bool:
        """Whether its worker did others while this job failed there, or since it failed there before."""
        index, event = ran.index, news.event
        job_id = record.job_id_at(index)
        news.failed.add(job_id)
        if index not in news.in_company or self._streaks.has_failed_since(event.lane, event.worker_id, job_id):
            return False
        is_open = ran.error_code is not None and evidence_of(ran.error_code) is Evidence.OPEN
        if is_open and record.span_at(index).failures == 0:
            news.failed_once.add(index)
        return True

    def _tell_health(self, news: _News) -> None:
        lane = news.event.lane
        if news.is_well:
            self._health.success(lane)
        elif news.fault:
            if news.has_succeeded:
                self._health.success(lane)
            self._health.fault(lane, *news.fault)

    def _apply(self, ends: AttemptEnds, record: ShardRecord, news: _News, now_us: int) -> None:
        event, lane = news.event, self._lanes.at(record.lane, record.created_us)
        match event:
            case JobsRan():
                for ran in event.jobs:
                    if not 0 <= ran.index < record.jobs_count or ran.index in record.recorded:
                        continue
                    record.recorded.add(ran.index)
                    if ran.outcome is Outcome.SUCCEEDED:
                        ends.add(record, lane, ran)
                    else:
                        works = self._is_in_company(news, record, ran)
                        patience = self._streaks.patience(event.lane, event.worker_id) if works else 0
                        ends.add(record, lane, ran, lane_works=works, patience=patience)
            case ShardReturned():
                if record.state is ShardState.RUNNING:
                    ends.give_back(record, record.recorded.missing(record.jobs_count))
                    record.state, record.closed_us = ShardState.RETURNED, now_us
                    _log.info("shard_returned", shard=record.shard_id.hex(), lane=record.lane, reason=event.reason)
            case _:
                assert_never(event)
        if len(record.recorded) == record.jobs_count and record.closed_us is None:
            record.closed_us = now_us
            if record.state is ShardState.RUNNING:
                record.state = ShardState.DONE
            _log.debug("shard_recorded", shard=record.shard_id.hex(), lane=record.lane, jobs=record.jobs_count)
