"""Reruns: a batch of the lines of another that did not succeed, with the requests that are kept of them.

The lines keep their numbers and names, and each new job says which one it runs again. They come in page by page, each
in one transaction, so that a rerun that was interrupted goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import msgspec
import structlog

from broker.clock import Clock
from broker.database import batches, reruns
from broker.database.batches import BatchRecord
from broker.database.connection import Connection, Database
from broker.database.fencing import alone
from broker.domain.errors import ErrorCode
from broker.domain.identity import Identity
from broker.domain.ids import format_id, new_id
from broker.domain.job import AcceptedLine, BatchStatus, RefusedLine
from broker.domain.lane import Lane
from broker.domain.outcome import Outcome
from broker.domain.rerun import RERUN_OUTCOMES, Rerun, RerunRefused
from broker.intake.batch_lines import Admission, LineClass
from broker.ledger.left_lines import Left, left_lines
from broker.rules.admission import Refusal, check_request
from broker.wakeups import Topic, Wakeups

__all__ = ["RerunTerms", "Reruns"]

_PAGE_BYTES = 8_000_000

_log = structlog.get_logger(__name__)

InsertLines = Callable[
    [Connection, BatchRecord, Sequence[AcceptedLine], Callable[[AcceptedLine], LineClass], int],
    None,
]
"""`BatchFiles.insert`."""


class RerunTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for. None: the window of the run before, and what that left of its budget.

    `paths`: of the output and the error file, given those of the run before.
    """

    paths: Callable[[BatchRecord], tuple[str, str]]
    outcomes: tuple[Outcome, ...] = RERUN_OUTCOMES
    window_seconds: int | None = None
    max_cost_nano_usd: int | None = None


class _Found(msgspec.Struct):
    """How many lines would run again, how large they are, and how many of them a spent budget ended."""

    lines: int = 0
    size_bytes: int = 0
    unpaid: int = 0


class Reruns:
    """Makes reruns, and takes their lines in."""

    def __init__(
        self,
        database: Database,
        models: Collection[str],
        clock: Clock,
        wakeups: Wakeups,
        lanes: Sequence[Lane],
        insert: InsertLines,
    ) -> None:
        self._database = database
        self._models = models
        self._clock = clock
        self._wakeups = wakeups
        self._lanes = lanes
        self._insert = insert

    def create(self, identity: Identity, record: BatchRecord, terms: RerunTerms) -> BatchRecord:
        """A batch of what is left of the identity's batch after all runs of it, durable; its lines are still to come.

        Asked again while it runs, it is the same one. Raises RerunRefused.
        """
        tenant = identity.tenant
        before = self._database.read(lambda connection: reruns.newest_of(connection, tenant, record))
        if before.finished_us is None:
            return _under_way(before)
        found = self._database.read(lambda connection: _find(connection, tenant, before, terms.outcomes))
        _check(before, found, terms)

        def work(connection: Connection) -> BatchRecord:
            alone(connection, "reruns")
            newest = reruns.newest_of(connection, tenant, before)
            if newest.batch_id != before.batch_id:  # another was quicker
                return newest
            made = self._record(connection, tenant, before, found, terms)
            batches.create(connection, made)
            return made

        made = self._database.write(work)
        _log.info("rerun_created", batch=made.batch_id.hex(), of=before.batch_id.hex(), lines=found.lines)
        self._wakeups.notify(Topic.READER)
        return made

    def step(self) -> bool:
        """Take in the next page of the oldest rerun that isn't all in; False when there is none."""
        for record in self._database.read(batches.unfinished):
            rerun = Rerun.parse(record.source_name)
            if rerun and record.read_us is None:
                self._take_in(record, rerun)
                return True
        return False

    def _record(
        self, connection: Connection, tenant: str, before: BatchRecord, found: _Found, terms: RerunTerms
    ) -> BatchRecord:
        now_us = self._clock()
        output_path, error_path = terms.paths(before)
        window_seconds = terms.window_seconds or before.window_seconds
        budget = terms.max_cost_nano_usd
        if budget is None and before.max_cost_nano_usd is not None:
            spent = batches.progress_of(connection, tenant, [before.batch_id])
            budget = before.max_cost_nano_usd - spent[before.batch_id].at_most_nano_usd
        return BatchRecord(
            batch_id=new_id(),
            tenant_id=tenant,
            source_name=Rerun(before.batch_id, terms.outcomes).source_name,
            source_digest=before.source_digest,
            source_bytes=found.size_bytes,
            output_path=output_path,
            error_path=error_path,
            window_seconds=window_seconds,
            deadline_us=now_us + window_seconds * 1_000_000,
            max_cost_nano_usd=budget,
            constraints=before.constraints,
            created_us=now_us,
            status=BatchStatus.READING,
            name=before.name,
        )

    def _take_in(self, record: BatchRecord, rerun: Rerun) -> None:
        accepted, refused, at_end = self._database.read(lambda connection: self._next(connection, record, rerun))
        now_us = self._clock()
        admission = Admission(self._models, record.constraints, self._lanes)

        def work(connection: Connection) -> None:
            # First of all, for it waits for whoever else may be reading this batch, or cancelling it.
            if not batches.advance_reading(
                connection,
                record.batch_id,
                from_bytes=record.read_bytes,
                lines=len(accepted) + len(refused),
                bytes_read=sum(len(line.body) for line in accepted),
                accepted=len(accepted),
                refused=len(refused),
                read_us=now_us if at_end else None,
            ):
                return  # by another process, or cancelled meanwhile; it is looked at again
            self._insert(connection, record, accepted, admission.class_of, now_us)
            batches.refuse_lines(connection, record.batch_id, refused)

        self._database.write(work)
        _log.info("lines_taken_in", accepted=len(accepted), refused=len(refused))
        self._wakeups.notify(Topic.PLANNER, Topic.DISPATCHER, Topic.ASSEMBLER)

    def _next(
        self, connection: Connection, record: BatchRecord, rerun: Rerun
    ) -> tuple[list[AcceptedLine], list[RefusedLine], bool]:
        """The next lines to run, those that no lane runs any more, and whether they are the last."""
        tenant = record.tenant_id
        ids = [one.batch_id for one in reruns.chain(connection, tenant, record)[1:]]
        end = reruns.last_line(connection, tenant, ids[-1])
        after = reruns.last_line(connection, tenant, record.batch_id)
        found: list[Left] = []
        while after < end and not found:
            found, after = left_lines(connection, tenant, ids, rerun.outcomes, after)
        page = _up_to(found, _PAGE_BYTES)
        bodies = reruns.bodies_of(connection, tenant, [left.line.job_id for left in page])
        lines = [self._line(left, bodies.get(left.line.job_id)) for left in page]
        accepted = [line for line in lines if isinstance(line, AcceptedLine)]
        refused = [line for line in lines if isinstance(line, RefusedLine)]
        return accepted, refused, after >= end and len(page) == len(found)

    def _line(self, left: Left, body: bytes | None) -> AcceptedLine | RefusedLine:
        line = left.line
        if body is None:
            message = "the line's request is no longer kept, so it can't be run again"
            return RefusedLine(line.line_number, line.custom_id, ErrorCode.INVALID_LINE, message)
        checked = check_request(line.endpoint, body, self._models, endpoint_field="url", kind="batch")
        if isinstance(checked, Refusal):
            return RefusedLine(line.line_number, line.custom_id, checked.code, checked.message)
        return AcceptedLine(
            line.line_number, line.custom_id, line.endpoint, checked.model, body, checked.beginning, line.job_id
        )


def _under_way(before: BatchRecord) -> BatchRecord:
    if Rerun.parse(before.source_name):
        return before
    text = format_id("batch", before.batch_id)
    raise RerunRefused(
        "not_finished", f"{text} is {before.status}: what fails of it can be run again once it has ended"
    )


def _find(connection: Connection, tenant: str, before: BatchRecord, outcomes: tuple[Outcome, ...]) -> _Found:
    ids = [one.batch_id for one in reruns.chain(connection, tenant, before)]
    found, after, end = _Found(), 0, reruns.last_line(connection, tenant, ids[-1])
    while after < end:
        lefts, after = left_lines(connection, tenant, ids, outcomes, after)
        found.lines += len(lefts)
        found.size_bytes += sum(left.line.body_bytes for left in lefts)
        found.unpaid += sum(left.error_code == ErrorCode.BUDGET_EXCEEDED for left in lefts)
    return found


def _check(before: BatchRecord, found: _Found, terms: RerunTerms) -> None:
    text = format_id("batch", before.batch_id)
    if not found.lines:
        asked = ", ".join(terms.outcomes)
        raise RerunRefused(
            "nothing_to_rerun", f"{text} has no line that ended as {asked}: there is nothing to run again"
        )
    if found.unpaid and terms.max_cost_nano_usd is None and before.max_cost_nano_usd is not None:
        message = f"{text} has spent its budget: name one for the {found.lines:,} lines that are left (max-cost)"
        raise RerunRefused("budget_spent", message)


def _up_to(found: list[Left], bytes_max: int) -> list[Left]:
    """The first of them, one at least."""
    size = 0
    for place, left in enumerate(found):
        size += left.line.body_bytes
        if place and size > bytes_max:
            return found[:place]
    return found
