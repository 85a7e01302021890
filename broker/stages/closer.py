"""Closer: waiting jobs that will never run end here, without an attempt and without a cost.

Their window has closed, they or their batch were cancelled, or its budget is spent. Jobs already with a
lane are not touched: their end is the worker's to report.
"""

from __future__ import annotations

import structlog

from broker.clock import Clock
from broker.database import batches, cancelling, jobs, plans, ready, shards
from broker.database.batches import BatchRecord, Counts
from broker.database.connection import Connection, Database
from broker.database.fencing import alone
from broker.domain.errors import ErrorCode
from broker.domain.ids import id_at, id_offset, ids_of_span
from broker.domain.job import WaitingSpan
from broker.domain.outcome import Outcome
from broker.ledger.digests import submission_digest
from broker.ledger.streams import FixedSlot, OwnStream, StreamSlot
from broker.ledger.submitted import submitted
from broker.ledger.writing import Flush, OutcomeRow, append, ended_jobs
from broker.rules.pricing import affordable_jobs
from broker.wakeups import Topic, Wakeups

__all__ = ["Closer"]

_SPANS_PER_STEP = 64
_REQUESTS_PER_STEP = 10_000
_OUTCOMES = {
    ErrorCode.BATCH_EXPIRED: Outcome.EXPIRED,
    ErrorCode.JOB_EXPIRED: Outcome.EXPIRED,
    ErrorCode.BATCH_CANCELLED: Outcome.CANCELLED,
    ErrorCode.JOB_CANCELLED: Outcome.CANCELLED,
    ErrorCode.BUDGET_EXCEEDED: Outcome.FAILED,
}

_ONLY_SLOT = FixedSlot("closer-0")

_log = structlog.get_logger(__name__)


class Closer:
    """Ends what waits in vain."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        wakeups: Wakeups,
        slot: StreamSlot = _ONLY_SLOT,
    ) -> None:
        self._database = database
        self._clock = clock
        self._wakeups = wakeups
        self._own = OwnStream(database, clock, slot)
        self._stream = self._own.current()

    def step(self) -> int:
        """End what is due; how many spans that was."""
        self._stream = self._own.current()
        if self._database.read(lambda connection: cancelling.pending(connection, 1)):
            self._announce(self._database.write(self._honour_requests))
        due = self._database.read(self._find_due)
        if not any(due.values()):
            return 0
        closed, ended = self._database.write(self._close_all)
        self._announce(ended)
        return closed

    def _announce(self, ended: list[bytes]) -> None:
        self._wakeups.notify(Topic.ASSEMBLER)
        self._wakeups.endings.announce(ended)

    def _honour_requests(self, connection: Connection) -> list[bytes]:
        """End the jobs that are to be cancelled and wait; requests for jobs that have ended are done with."""
        alone(connection, ready.KEEPERS)
        flush, done = Flush(), []
        for job_id in cancelling.pending(connection, _REQUESTS_PER_STEP):
            if ended_jobs(connection, job_id, job_id):
                done.append(job_id)
                continue
            span = cancelling.waiting_span_of(connection, job_id)
            if span is None:
                continue  # with a lane, whose worker hears of it at the lease door
            ready.withdraw(connection, [span])
            jobs.wait(connection, _around(span, job_id))
            flush.outcomes += _outcomes(connection, _only(span, job_id), ErrorCode.JOB_CANCELLED)
            if span.batch_id:
                batches.add_counts(connection, span.batch_id, self._stream.slot, Counts(cancelled=1))
            done.append(job_id)
        cancelling.forget(connection, done)
        append(connection, self._stream.stream_id, flush, self._clock())
        return [row.job_id for row in flush.outcomes]

    def _find_due(self, connection: Connection) -> dict[ErrorCode, list[WaitingSpan]]:
        now_us = self._clock()
        due: dict[ErrorCode, list[WaitingSpan]] = {code: [] for code in _OUTCOMES}
        for span in ready.overdue_spans(connection, now_us, _SPANS_PER_STEP):
            due[ErrorCode.BATCH_EXPIRED if span.batch_id else ErrorCode.JOB_EXPIRED].append(span)
        for record in batches.unfinished(connection):
            if record.cancel_requested_us is not None:
                spans = ready.waiting_spans_of_batch(connection, record.batch_id, _SPANS_PER_STEP)
                due[ErrorCode.BATCH_CANCELLED] += spans
            elif record.max_cost_nano_usd is not None:
                spans = ready.waiting_spans_of_batch(connection, record.batch_id, _SPANS_PER_STEP)
                if self._is_spent(connection, record, spans):
                    due[ErrorCode.BUDGET_EXCEEDED] += spans
        return due

    def _is_spent(self, connection: Connection, record: BatchRecord, spans: list[WaitingSpan]) -> bool:
        """Nothing is under way that could cost less than is held for it, and no allowed lane can run one more job."""
        if record.max_cost_nano_usd is None or not spans or shards.any_open(connection, record.batch_id):
            return False
        left = record.max_cost_nano_usd - batches.progress(connection, record.batch_id).at_most_nano_usd
        # What the dispatcher goes by; a group that isn't planned yet may still turn out to be affordable.
        groups = {span.group_id for span in spans}
        assigned = plans.newest(connection, groups)
        if assigned.keys() != groups:
            return False
        costs = [
            candidate.expected_job_cost_nano_usd
            for assignment in assigned.values()
            for candidate in assignment.plan.candidates
        ]
        return bool(costs) and affordable_jobs(left, min(costs)) == 0

    def _close_all(self, connection: Connection) -> tuple[int, list[bytes]]:
        """How many spans were ended, and which single jobs."""
        alone(connection, ready.KEEPERS)
        closed, singles, seen = 0, [], set()
        # Looks again, inside the transaction, so that nothing is ended that was dispatched meanwhile.
        for code, due in self._find_due(connection).items():
            spans = [span for span in due if span.first_job_id not in seen]  # the first reason counts
            seen |= {span.first_job_id for span in spans}
            singles += self._close(connection, spans, code)
            closed += len(spans)
        return closed, singles

    def _close(self, connection: Connection, spans: list[WaitingSpan], code: ErrorCode) -> list[bytes]:
        flush = Flush()
        for span in spans:
            outcomes = _outcomes(connection, span, code)
            flush.outcomes += outcomes
            if span.batch_id:
                batches.add_counts(connection, span.batch_id, self._stream.slot, _counts(code, len(outcomes)))
        ready.withdraw(connection, spans)
        append(connection, self._stream.stream_id, flush, self._clock())
        if flush.outcomes:
            _log.info("waiting_jobs_ended", reason=code, jobs=len(flush.outcomes))
        return [row.job_id for row in flush.outcomes if row.batch_id is None]


def _only(span: WaitingSpan, job_id: bytes) -> WaitingSpan:
    return span.part(id_offset(span.first_job_id, job_id), 1)


def _around(span: WaitingSpan, job_id: bytes) -> list[WaitingSpan]:
    """What is left of the span without this job."""
    before = id_offset(span.first_job_id, job_id)
    after = span.jobs_count - before - 1
    return [span.part(offset, count) for offset, count in ((0, before), (before + 1, after)) if count]


def _outcomes(connection: Connection, span: WaitingSpan, code: ErrorCode) -> list[OutcomeRow]:
    ended = ended_jobs(connection, span.first_job_id, id_at(span.first_job_id, span.jobs_count - 1))
    group = jobs.load_groups(connection, [span.group_id])[0].key
    ending = [job_id for job_id in ids_of_span(span.first_job_id, span.jobs_count) if job_id not in ended]
    asked = submitted(connection, ending)
    return [
        OutcomeRow(
            job_id=job_id,
            tenant_id=group.tenant_id,
            batch_id=span.batch_id,
            outcome=_OUTCOMES[code],
            error_code=code,
            attempt_id=None,
            attempt_number=None,
            submission_digest=submission_digest(
                row, group.tenant_id, span.batch_id, group.endpoint, group.model, group.constraints
            )
            if (row := asked.get(job_id))
            else None,
        )
        for job_id in ending
    ]


def _counts(code: ErrorCode, jobs_count: int) -> Counts:
    match _OUTCOMES[code]:
        case Outcome.EXPIRED:
            return Counts(expired=jobs_count)
        case Outcome.CANCELLED:
            return Counts(cancelled=jobs_count)
        case _:
            return Counts(failed=jobs_count)
