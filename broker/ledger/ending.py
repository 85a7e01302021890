"""One transaction's worth of attempts that ended: what they cost, what they mean for their jobs, what is written.

Used by whoever learns of an end: the recorder from a worker's events, the rescuer from a worker's silence.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection

from broker.database import batches, jobs
from broker.database.batches import Counts
from broker.database.connection import bulk_insert
from broker.database.shards import ShardRecord
from broker.database.tables import result
from broker.domain.events import JobRan
from broker.domain.ids import id_at, new_span, time_us_of
from broker.domain.job import GroupKey, WaitingSpan
from broker.domain.lane import CURRENCY, Lane, Price, PriceMeter
from broker.domain.money import NanoUsd
from broker.domain.outcome import CostBasis, Outcome
from broker.domain.shard import ShardSpan, ShardState
from broker.domain.usage import UsageBasis
from broker.ledger.digests import Decisions, price_digest, submission_digest
from broker.ledger.submitted import TAGS, submitted
from broker.ledger.writing import AttemptRow, Flush, OutcomeRow, ShardFacts, append, ended_jobs
from broker.rules.planning import plan_group
from broker.rules.pricing import accelerator_cost_nano_usd, charged_nano_usd, costs_of
from broker.rules.regrouping import another_try, refusing_lanes, regroup, waiting_job
from broker.rules.settling import SUCCEEDED, Around, Ended, Retry, Settlement, settle

__all__ = ["AttemptEnds"]

_NOT_KNOWN = (UsageBasis.NONE, UsageBasis.IMPLAUSIBLE)


class _Shared(NamedTuple):
    """What the attempts of one shard have in common. `counts` are its batch's, where it is of one."""

    facts: ShardFacts
    constraints: str
    price: Price
    basis: CostBasis
    counts: Counts | None


_JobEnd = tuple[_Shared, AttemptRow, Ended]
"""A job that ends with this attempt."""


class AttemptEnds:
    """Collects ends, then writes them all: attempts, outcomes, results, counters, and the retries to come.

    `lanes` are those that a job may still go to, where one has refused it.
    """

    def __init__(
        self,
        connection: Connection,
        writer: str,
        stream_id: bytes,
        now_us: int,
        decisions: Decisions,
        lanes: Sequence[Lane] = (),
    ) -> None:
        self._lanes = lanes
        self._serving: dict[GroupKey, set[str]] = {}
        self._connection = connection
        self._decisions = decisions
        self._writer = writer
        self._stream_id = stream_id
        self._now_us = now_us
        self._flush = Flush()
        self._job_ends: list[_JobEnd] = []
        self._results: list[tuple[Any, ...]] = []
        self._waiting: list[WaitingSpan] = []
        self._counts: dict[bytes, Counts] = defaultdict(Counts)
        self._attempt_ids = map(partial(id_at, new_span()), count())
        self._shared: dict[bytes, _Shared] = {}
        self._ended: set[bytes] = set()
        self._looked_up: set[bytes] = set()

    def add(
        self,
        shard: ShardRecord,
        lane: Lane,
        ran: JobRan,
        cost_upper_nano_usd: int | None = None,
        *,
        sent_on: bool = False,
        lane_works: bool = False,
        patience: int = 0,
    ) -> None:
        """One attempt ended. `cost_upper_nano_usd` bounds a cost that nobody could measure.

        `lane_works` and `patience`: see `Around`.

        A job that needs another try waits again, unless its shard was taken back or handed back, which sent it on.

        With `sent_on` nothing follows for the job either way: only the attempt is written.
        """
        shared = self._shared.get(shard.shard_id) or self._share(shard, lane)
        span = shard.span_at(ran.index)
        job_id = id_at(span.first_job_id, ran.index - span.first_index)
        if ran.outcome is Outcome.SUCCEEDED and not sent_on and job_id not in self._ended:
            settlement = SUCCEEDED
        else:
            settlement = settle(
                ran.outcome,
                ran.error_code,
                sent_on or job_id in self._ended,
                attempt_number=span.attempt_number,
                failures=span.failures,
                crashes=span.crashes,
                alone=span.alone,
                around=self._around(shard, span, lane_works, patience),
            )
        ids = (next(self._attempt_ids), job_id)
        row = _attempt_row(ids, shared, ran, span, settlement, cost_upper_nano_usd)
        self._flush.attempts.append(row)
        match settlement.then:
            case Ended() as ended:
                self._end_job(shared, row, ran, ended)
            case Retry() as retry if shard.state is ShardState.RUNNING:
                waited = waiting_job(span, ran.index, shard.group_id, shard.batch_id)
                self._waiting.append(another_try(waited, shard.lane, retry, self._now_us))
            case Retry() | None:
                pass
        if shared.counts is not None:
            _count(shared.counts, row)

    def give_back(self, shard: ShardRecord, indices: list[int]) -> None:
        """Jobs of the shard that its worker did not start, or did not speak of: they wait again, uncounted.

        Where a worker had the shard, a late word of it may still end them, so the next attempt is not the first.
        """
        self._look_up_ended(shard)
        for index in indices:
            span = shard.span_at(index)
            job_id = id_at(span.first_job_id, index - span.first_index)
            if job_id not in self._ended:
                waiting = waiting_job(span, index, shard.group_id, shard.batch_id)
                if shard.claimed_us is not None:
                    waiting = msgspec.structs.replace(waiting, attempt_number=span.attempt_number + 1)
                self._waiting.append(waiting)

    def write(self) -> None:
        """Write everything, inside the caller's transaction."""
        self._describe()
        append(self._connection, self._stream_id, self._flush, self._now_us)
        bulk_insert(self._connection, result, self._results)
        jobs.wait(self._connection, regroup(self._waiting))
        for batch_id, counts in self._counts.items():
            batches.add_counts(self._connection, batch_id, self._writer, counts)

    @property
    def attempts_count(self) -> int:
        """How many attempts ended."""
        return len(self._flush.attempts)

    @property
    def ended_singles(self) -> list[bytes]:
        """The jobs of no batch that end here; somebody may wait for each of them."""
        return [row.job_id for shared, row, _ in self._job_ends if shared.facts.batch_id is None]

    def _describe(self) -> None:
        """Say in the rows what was asked: one look for all jobs of the flush."""
        flush = self._flush
        asked = submitted(self._connection, [row.job_id for row in flush.attempts])
        tags = {job_id: row[TAGS] for job_id, row in asked.items() if row[TAGS] is not None}
        if tags:
            flush.attempts = [row._replace(tags=tags.get(row.job_id)) for row in flush.attempts]
        flush.outcomes = [
            _outcome_row(shared, attempt, ended, asked.get(attempt.job_id)) for shared, attempt, ended in self._job_ends
        ]

    def _share(self, shard: ShardRecord, lane: Lane) -> _Shared:
        self._look_up_ended(shard)
        counts = self._counts[shard.batch_id] if shard.batch_id else None
        facts = _shard_facts(shard, lane, self._decisions.of(self._connection, shard))
        shared = _Shared(facts, shard.constraints, lane.price, _basis(lane), counts)
        self._shared[shard.shard_id] = shared
        return shared

    def _look_up_ended(self, shard: ShardRecord) -> None:
        """A first attempt inside its lease is the only one its job has had, so nothing can have ended it."""
        if shard.shard_id in self._looked_up:
            return
        self._looked_up.add(shard.shard_id)
        for span in shard.spans:
            if span.attempt_number > 1 or shard.state is not ShardState.RUNNING:
                last = id_at(span.first_job_id, span.jobs_count - 1)
                self._ended |= ended_jobs(self._connection, span.first_job_id, last)

    def _around(self, shard: ShardRecord, span: ShardSpan, lane_works: bool, patience: int) -> Around:
        refusing = set(refusing_lanes(span)) - {shard.lane}
        left = bool(self._may_serve(shard) - refusing - {shard.lane})
        since_us = span.submitted_us or time_us_of(span.first_job_id)
        part = (self._now_us - since_us) / max(1, span.deadline_us - since_us)
        return Around(lane_works, left, bool(refusing), part, patience)

    def _may_serve(self, shard: ShardRecord) -> set[str]:
        """The lanes of the catalog that the shard's constraints allow; looked up once for all that ask the same."""
        key = GroupKey(shard.tenant_id, shard.endpoint, shard.model, shard.constraints, 0)
        if key not in self._serving:
            self._serving[key] = {one.lane for one in plan_group(key, self._lanes).candidates} if self._lanes else set()
        return self._serving[key]

    def _end_job(self, shared: _Shared, row: AttemptRow, ran: JobRan, ended: Ended) -> None:
        job_id, attempt_id = row.job_id, row.attempt_id
        self._ended.add(job_id)
        self._job_ends.append((shared, row, ended))
        message = f"{ran.message} (lane {shared.facts.lane})" if ran.message else None
        self._results.append(
            (job_id, attempt_id, ran.status_code, ran.request_id, ended.error_code, message, ran.body, None)
        )
        if shared.counts is not None:
            _count_end(shared.counts, ended.outcome)


def _basis(lane: Lane) -> CostBasis:
    return CostBasis.LIST if lane.price.meter is PriceMeter.TOKEN else CostBasis.ATTRIBUTED


def _count_end(counts: Counts, outcome: Outcome) -> None:
    match outcome:
        case Outcome.SUCCEEDED:
            counts.succeeded += 1
        case Outcome.FAILED:
            counts.failed += 1
        case Outcome.CANCELLED:
            counts.cancelled += 1
        case Outcome.EXPIRED:
            counts.expired += 1
        case Outcome.PREEMPTED | Outcome.LOST | Outcome.SUPERSEDED:
            pass  # an attempt ends so, never a job


def _count(counts: Counts, row: AttemptRow) -> None:
    counts.attempts += 1
    counts.input_tokens += row.input_tokens or 0  # the counters sum what is known
    counts.output_tokens += row.output_tokens or 0
    counts.cost_nano_usd += row.cost_nano_usd
    counts.unknown_nano_usd += row.cost_upper_nano_usd - row.cost_nano_usd
    if row.outcome != Outcome.SUCCEEDED:
        counts.wasted_nano_usd += row.cost_nano_usd


def _shard_facts(shard: ShardRecord, lane: Lane, decision_digest: bytes | None) -> ShardFacts:
    return ShardFacts(
        batch_id=shard.batch_id,
        tenant_id=shard.tenant_id,
        shard_id=shard.shard_id,
        assignment_id=shard.assignment_id,
        lane=shard.lane,
        provider=str(lane.provider),
        region=lane.region,
        accelerator=lane.accelerator,
        accelerator_count=lane.accelerator_count,
        market=str(lane.market),
        engine=lane.engine.driver,
        model=shard.model,
        worker_id=shard.worker_id or "",
        stand_in=lane.stand_in,
        price_version=lane.price.version,
        dispatched_us=shard.created_us,
        resource_id=None,
        zone=None,
        endpoint=shard.endpoint,
        claimed_us=shard.claimed_us,
        currency=CURRENCY,
        price_digest=price_digest(lane.price),
        decision_digest=decision_digest,
    )


def _outcome_row(shared: _Shared, row: AttemptRow, ended: Ended, asked: Sequence[Any] | None) -> OutcomeRow:
    facts = shared.facts
    return OutcomeRow(
        job_id=row.job_id,
        tenant_id=facts.tenant_id,
        batch_id=facts.batch_id,
        outcome=ended.outcome._value_,
        error_code=ended.error_code,
        attempt_id=row.attempt_id,
        attempt_number=row.attempt_number,
        submission_digest=submission_digest(
            asked, facts.tenant_id, facts.batch_id, facts.endpoint, facts.model, shared.constraints
        )
        if asked
        else None,
    )


def _usage_basis(ran: JobRan) -> UsageBasis:
    """What its worker says. Of an older build's a reply counts as stated, and what ended without one as unknown."""
    if ran.usage_basis is not None:
        return ran.usage_basis
    usage = ran.usage
    is_stated = ran.outcome is Outcome.SUCCEEDED or usage.input_tokens or usage.output_tokens
    return UsageBasis.ENGINE if is_stated else UsageBasis.NONE


def _costs(
    shared: _Shared, ran: JobRan, usage_basis: UsageBasis, cost_upper_nano_usd: int | None
) -> tuple[NanoUsd, NanoUsd, CostBasis]:
    """What is known of the attempt's cost, its bound, and how it is known."""
    if cost_upper_nano_usd is None and shared.price.meter is not PriceMeter.TOKEN:
        known = accelerator_cost_nano_usd(shared.price, ran.usage.accelerator_us)
        return known, known, shared.basis
    cost = costs_of(shared.price, ran.usage, usage_basis, ran.usage_upper)
    if cost_upper_nano_usd is not None:
        return cost.known, NanoUsd(max(cost.known, cost_upper_nano_usd)), CostBasis.UNKNOWN
    return cost.known, cost.upper, shared.basis if cost.is_known else CostBasis.UNKNOWN


def _attempt_row(
    ids: tuple[bytes, bytes],
    shared: _Shared,
    ran: JobRan,
    span: ShardSpan,
    settlement: Settlement,
    cost_upper_nano_usd: int | None,
) -> AttemptRow:
    attempt_id, job_id = ids
    submitted_us = time_us_of(job_id) if span.submitted_us is None else span.submitted_us
    usage, usage_basis = ran.usage, _usage_basis(ran)
    is_known = usage_basis not in _NOT_KNOWN
    known, upper, basis = _costs(shared, ran, usage_basis, cost_upper_nano_usd)
    return AttemptRow(
        attempt_id,
        job_id,
        ran.index,
        span.attempt_number,
        shared.facts,
        settlement.outcome._value_,  # plain text from here on: a driver takes several times as long over an enum
        ran.error_code,
        ran.status_code,
        isinstance(settlement.then, Ended),
        submitted_us,
        ran.started_us,
        ran.ended_us,
        max(0, ran.started_us - submitted_us),
        ran.run_us,
        usage.input_tokens if is_known else None,
        usage.cached_input_tokens if is_known else None,
        usage.output_tokens if is_known else None,
        usage.reasoning_tokens if is_known else None,
        usage.accelerator_us,
        known,
        known,
        upper,
        basis._value_,
        ran.request_digest or None,
        ran.reply_digest or None,
        len(ran.body),
        ran.request_id,
        None,
        span.deadline_us,
        None,
        None,
        usage_basis._value_,
        None,
        None,
        None,
        None,
        charged_nano_usd(settlement.outcome, known),
    )
