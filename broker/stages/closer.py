"""Closer: waiting jobs that will never run end here, without an attempt and without a cost.

Their window has closed, they or their batch were cancelled, or its budget is spent. Jobs already with a
lane are not touched: their end is the worker's to report.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import partial
from typing import NamedTuple

import structlog

from broker.clock import Clock
from broker.database import batches, cancelling, jobs, plans, ready, shards
from broker.database.batches import Counts
from broker.database.connection import Connection, Database, bulk_insert
from broker.database.fencing import alone
from broker.database.tables import result
from broker.domain.errors import ErrorCode
from broker.domain.ids import id_offset, ids_of_span
from broker.domain.job import WaitingSpan
from broker.domain.outcome import Outcome
from broker.ledger.digests import submission_digest
from broker.ledger.last_tries import tries_of
from broker.ledger.streams import FixedSlot, OwnStream, StreamSlot
from broker.ledger.submitted import submitted
from broker.ledger.writing import Flush, OutcomeRow, append, ended_among
from broker.rules.output import tried_in_vain
from broker.rules.pricing import affordable_jobs
from broker.wakeups import Topic, Wakeups

__all__ = ["Closer"]

_SPANS_PER_STEP = 64
_JOBS_PER_STEP = 5_000
_REQUESTS_PER_PAGE, _PAGES_PER_STEP = 500, 20
_OUTCOMES = {
    ErrorCode.BATCH_EXPIRED: Outcome.EXPIRED,
    ErrorCode.JOB_EXPIRED: Outcome.EXPIRED,
    ErrorCode.BATCH_CANCELLED: Outcome.CANCELLED,
    ErrorCode.JOB_CANCELLED: Outcome.CANCELLED,
    ErrorCode.BUDGET_EXCEEDED: Outcome.FAILED,
}

_ONLY_SLOT = FixedSlot("closer-0")

_log = structlog.get_logger(__name__)


class _Due(NamedTuple):
    """A span that is to end, and why."""

    span: WaitingSpan
    code: ErrorCode


class _Ending(NamedTuple):
    """Jobs of one waiting span that end, and why."""

    span: WaitingSpan
    job_ids: list[bytes]
    code: ErrorCode


class Closer:
    """Ends what waits in vain.

    It shares the line with the dispatcher, so it looks for what is due without keeping it out, and then ends a few
    thousand jobs at a time.
    """

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
        self._looked_at = b""
        self._costs: dict[bytes, int | None] = {}
        self._costs_of_plan = b""

    def step(self) -> int:
        """End what is due; how many spans that was."""
        self._stream = self._own.current()
        self._honour_requests()
        due = self._database.read(self._find_due)
        if not due:
            return 0
        ended = self._database.write(partial(self._close, due=due))
        self._announce(ended)
        return len(due)

    def _announce(self, ended: list[bytes]) -> None:
        self._wakeups.notify(Topic.ASSEMBLER)
        self._wakeups.endings.announce(ended)

    def _honour_requests(self) -> None:
        """Go through the requests, a page at a time, and on from there at the next step where there are many."""
        for _ in range(_PAGES_PER_STEP):
            page, is_due = self._database.read(self._look_at_requests)
            if is_due:
                self._announce(self._database.write(partial(self._honour, page=page)))
            is_last = len(page) < _REQUESTS_PER_PAGE
            self._looked_at = b"" if is_last else page[-1]
            if is_last:
                return

    def _look_at_requests(self, connection: Connection) -> tuple[list[bytes], bool]:
        """The next page; and whether any of its jobs has ended, or waits. The others are with a lane's worker."""
        page = cancelling.pending(connection, self._looked_at or bytes(16), _REQUESTS_PER_PAGE)
        return page, bool(page) and bool(ended_among(connection, page) or cancelling.waiting_spans(connection, page))

    def _honour(self, connection: Connection, page: list[bytes]) -> list[bytes]:
        """End the jobs that are to be cancelled and wait; requests for jobs that have ended are done with."""
        alone(connection, ready.KEEPERS)
        done = ended_among(connection, page)
        asked: dict[bytes, tuple[WaitingSpan, list[bytes]]] = {}
        for job_id, span in cancelling.waiting_spans(connection, [one for one in page if one not in done]).items():
            asked.setdefault(span.first_job_id, (span, []))[1].append(job_id)
        endings = [_Ending(span, job_ids, ErrorCode.JOB_CANCELLED) for span, job_ids in asked.values()]
        rest = [part for one in endings for part in _around(one.span, one.job_ids)]
        ended = [row.job_id for row in self._end(connection, endings, rest)]
        cancelling.forget(connection, sorted(done.union(ended)))
        return ended

    def _find_due(self, connection: Connection) -> list[_Due]:
        """Spans with some thousand jobs at most, or one."""
        found = [
            _Due(span, ErrorCode.BATCH_EXPIRED if span.batch_id else ErrorCode.JOB_EXPIRED)
            for span in ready.overdue_spans(connection, self._clock(), _SPANS_PER_STEP)
        ]
        cancelled = ready.spans_of_cancelled(connection, _SPANS_PER_STEP)
        found += [_Due(span, ErrorCode.BATCH_CANCELLED) for span in cancelled]
        if spent := self._spent_batches(connection):
            unaffordable = ready.spans_of_batches(connection, spent, _SPANS_PER_STEP)
            found += [_Due(span, ErrorCode.BUDGET_EXCEEDED) for span in unaffordable]
        due: dict[bytes, _Due] = {}
        jobs_count = 0
        for one in found:
            if one.span.first_job_id in due:  # the first reason counts
                continue
            jobs_count += one.span.jobs_count
            if due and jobs_count > _JOBS_PER_STEP:
                break
            due[one.span.first_job_id] = one
        return list(due.values())

    def _spent_batches(self, connection: Connection) -> list[bytes]:
        """Nothing is under way that could cost less than is held for it, and no allowed lane can run one more job."""
        budgets = {
            one.batch_id: one.max_cost_nano_usd
            for one in batches.open_terms(connection)
            if one.max_cost_nano_usd is not None and not one.cancel_requested
        }
        for batch_id in shards.held_nano_usd(connection, budgets) if budgets else ():
            del budgets[batch_id]
        if not budgets:
            return []
        spent = batches.spent_nano_usd(connection, budgets)
        groups = ready.groups_of_batches(connection, budgets)
        costs = self._least_costs(connection, set().union(*groups.values()))
        found = []
        for batch_id, its_groups in groups.items():
            # What the dispatcher goes by; a group that isn't planned yet may still turn out to be affordable.
            known = [costs[group_id] for group_id in its_groups if group_id in costs]
            least = min((cost for cost in known if cost is not None), default=None)
            left = budgets[batch_id] - spent.get(batch_id, 0)
            if len(known) == len(its_groups) and least is not None and affordable_jobs(left, least) == 0:
                found.append(batch_id)
        return found

    def _least_costs(self, connection: Connection, groups: set[bytes]) -> dict[bytes, int | None]:
        """A job's on the cheapest lane of each planned group; None where no lane is left. Read once a plan."""
        _, plan_id = plans.current_plan(connection)
        if plan_id != self._costs_of_plan:
            self._costs, self._costs_of_plan = {}, plan_id
        if unknown := groups - self._costs.keys():
            for group_id, assignment in plans.newest(connection, unknown).items():
                costs = (candidate.expected_job_cost_nano_usd for candidate in assignment.plan.candidates)
                self._costs[group_id] = min(costs, default=None)
        return self._costs

    def _close(self, connection: Connection, due: list[_Due]) -> list[bytes]:
        """Which single jobs ended."""
        alone(connection, ready.KEEPERS)
        # Looks again, so that nothing is ended that was dispatched meanwhile, or whose budget was raised.
        waiting = {span.first_job_id: span for span in ready.load(connection, [one.span.first_job_id for one in due])}
        over_budget = any(one.code is ErrorCode.BUDGET_EXCEEDED for one in due)
        spent = set(self._spent_batches(connection)) if over_budget else set()
        still = [
            one
            for one in due
            if waiting.get(one.span.first_job_id) == one.span
            and (one.code is not ErrorCode.BUDGET_EXCEEDED or one.span.batch_id in spent)
        ]
        endings = [_Ending(span, list(ids_of_span(span.first_job_id, span.jobs_count)), code) for span, code in still]
        return [row.job_id for row in self._end(connection, endings, []) if row.batch_id is None]

    def _end(self, connection: Connection, endings: list[_Ending], rest: list[WaitingSpan]) -> list[OutcomeRow]:
        """End these jobs, but for those that have ended; of their spans `rest` goes on waiting."""
        if not endings:
            return []
        # A first attempt is the only one its jobs have had, so nothing can have ended them.
        tried = (job_id for one in endings if one.span.attempt_number > 1 for job_id in one.job_ids)
        ended = ended_among(connection, tried)
        endings = [one._replace(job_ids=[job_id for job_id in one.job_ids if job_id not in ended]) for one in endings]
        _say_what_was_tried(connection, endings)
        ready.withdraw(connection, [one.span for one in endings])
        jobs.wait(connection, rest)
        flush = Flush(outcomes=_outcomes(connection, endings))
        append(connection, self._stream.stream_id, flush, self._clock())
        for batch_id, counts in _counts(endings).items():
            batches.add_counts(connection, batch_id, self._stream.slot, counts)
        for code, count in Counter(row.error_code for row in flush.outcomes).items():
            _log.info("waiting_jobs_ended", reason=code, jobs=count)
        return flush.outcomes


def _say_what_was_tried(connection: Connection, endings: list[_Ending]) -> None:
    """For who reads the error file: that a window closed says nothing of why that was in vain."""
    codes = {job_id: one.code for one in endings if one.span.attempt_number > 1 for job_id in one.job_ids}
    rows = [
        (job_id, None, 0, "", codes[job_id], tried_in_vain(codes[job_id], *tries), None, None)
        for job_id, tries in tries_of(connection, codes).items()
    ]
    bulk_insert(connection, result, rows)


def _around(span: WaitingSpan, job_ids: list[bytes]) -> list[WaitingSpan]:
    """What is left of the span without these jobs."""
    left, start = [], 0
    for offset in sorted(id_offset(span.first_job_id, job_id) for job_id in job_ids):
        left.append((start, offset - start))
        start = offset + 1
    left.append((start, span.jobs_count - start))
    return [span.part(offset, count) for offset, count in left if count]


def _outcomes(connection: Connection, endings: list[_Ending]) -> list[OutcomeRow]:
    groups = {
        group.group_id: group.key
        for group in jobs.load_groups(connection, sorted({one.span.group_id for one in endings}))
    }
    asked = submitted(connection, (job_id for one in endings for job_id in one.job_ids))
    rows = []
    for span, job_ids, code in endings:
        group = groups[span.group_id]
        rows += [
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
            for job_id in job_ids
        ]
    return rows


def _counts(endings: list[_Ending]) -> dict[bytes, Counts]:
    """Of each batch."""
    counts: dict[bytes, Counts] = defaultdict(Counts)
    for span, job_ids, code in endings:
        if span.batch_id is None:
            continue
        of_batch = counts[span.batch_id]
        match _OUTCOMES[code]:
            case Outcome.EXPIRED:
                of_batch.expired += len(job_ids)
            case Outcome.CANCELLED:
                of_batch.cancelled += len(job_ids)
            case _:
                of_batch.failed += len(job_ids)
    return counts
