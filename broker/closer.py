"""Closer: waiting jobs that will never run end here, without an attempt and without a cost.

Their window has closed, their batch was cancelled, or its budget is spent. Jobs already with a lane are
not touched: their end is the worker's to report.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from broker.clock import Clock
from broker.database import batches, jobs, ready, shards
from broker.database.batches import BatchRecord, Counts
from broker.database.connection import Connection, Database
from broker.domain.errors import ErrorCode
from broker.domain.ids import id_at, ids_of_span
from broker.domain.job import WaitingSpan
from broker.domain.lane import Lane
from broker.domain.outcome import Outcome
from broker.ledger.writing import Flush, OutcomeRow, append, ended_jobs, open_stream
from broker.rules.pricing import expected_job_cost_nano_usd
from broker.wakeups import Topic, Wakeups

__all__ = ["Closer"]

_SPANS_PER_STEP = 64
_OUTCOMES = {
    ErrorCode.BATCH_EXPIRED: Outcome.EXPIRED,
    ErrorCode.BATCH_CANCELLED: Outcome.CANCELLED,
    ErrorCode.BUDGET_EXCEEDED: Outcome.FAILED,
}

_log = structlog.get_logger(__name__)


class Closer:
    """Ends what waits in vain."""

    def __init__(
        self,
        *,
        database: Database,
        lanes: Sequence[Lane],
        clock: Clock,
        wakeups: Wakeups,
        slot: str = "closer-0",
    ) -> None:
        self._database = database
        self._lanes = lanes
        self._clock = clock
        self._wakeups = wakeups
        self._slot = slot
        self._stream_id = database.write(lambda connection: open_stream(connection, slot, clock()))

    def step(self) -> int:
        """End what is due; how many spans that was."""
        due = self._database.read(self._find_due)
        if not any(due.values()):
            return 0
        closed = self._database.write(lambda connection: sum(self._close(connection, code) for code in due))
        self._wakeups.notify(Topic.ASSEMBLER)
        return closed

    def _find_due(self, connection: Connection) -> dict[ErrorCode, list[WaitingSpan]]:
        now_us = self._clock()
        due: dict[ErrorCode, list[WaitingSpan]] = {code: [] for code in _OUTCOMES}
        due[ErrorCode.BATCH_EXPIRED] = ready.overdue_spans(connection, now_us, _SPANS_PER_STEP)
        for record in batches.unfinished(connection):
            if record.cancel_requested_us is not None:
                spans = ready.waiting_spans_of_batch(connection, record.batch_id, _SPANS_PER_STEP)
                due[ErrorCode.BATCH_CANCELLED] += spans
            elif self._is_spent(connection, record):
                spans = ready.waiting_spans_of_batch(connection, record.batch_id, _SPANS_PER_STEP)
                due[ErrorCode.BUDGET_EXCEEDED] += spans
        return due

    def _is_spent(self, connection: Connection, record: BatchRecord) -> bool:
        """Nothing is under way that could cost less than was held for it, and no lane can run one more job."""
        if record.max_cost_nano_usd is None or shards.held_nano_usd(connection, record.batch_id) > 0:
            return False
        left = record.max_cost_nano_usd - batches.progress(connection, record.batch_id).cost_nano_usd
        return left < min(expected_job_cost_nano_usd(lane.price, lane.jobs_per_second) for lane in self._lanes)

    def _close(self, connection: Connection, code: ErrorCode) -> int:
        """Looks again, inside the transaction, so that nothing is ended that was dispatched meanwhile."""
        spans = self._find_due(connection)[code]
        flush = Flush()
        for span in spans:
            outcomes = _outcomes(connection, span, code)
            flush.outcomes += outcomes
            if span.batch_id:
                batches.add_counts(connection, span.batch_id, self._slot, _counts(code, len(outcomes)))
        ready.withdraw(connection, spans)
        append(connection, self._stream_id, flush, self._clock())
        if flush.outcomes:
            _log.info("waiting_jobs_ended", reason=code, jobs=len(flush.outcomes))
        return len(spans)


def _outcomes(connection: Connection, span: WaitingSpan, code: ErrorCode) -> list[OutcomeRow]:
    ended = ended_jobs(connection, span.first_job_id, id_at(span.first_job_id, span.jobs_count - 1))
    tenant_id = _tenant_of(connection, span)
    return [
        OutcomeRow(
            job_id=job_id,
            tenant_id=tenant_id,
            batch_id=span.batch_id,
            outcome=_OUTCOMES[code],
            error_code=code,
            attempt_id=None,
        )
        for job_id in ids_of_span(span.first_job_id, span.jobs_count)
        if job_id not in ended
    ]


def _tenant_of(connection: Connection, span: WaitingSpan) -> str:
    return jobs.load_groups(connection, [span.group_id])[0].key.tenant_id


def _counts(code: ErrorCode, jobs_count: int) -> Counts:
    match _OUTCOMES[code]:
        case Outcome.EXPIRED:
            return Counts(expired=jobs_count)
        case Outcome.CANCELLED:
            return Counts(cancelled=jobs_count)
        case _:
            return Counts(failed=jobs_count)
