"""What may be asked of batches and of the files that they are made of and become."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import msgspec

from broker.api.errors import Refused
from broker.api.views import batch_state
from broker.database import batches, plans
from broker.database.batches import BatchRecord, Counts
from broker.database.connection import Connection
from broker.domain.answers import BatchState
from broker.domain.identity import Identity
from broker.domain.ids import format_id, new_id, parse_id
from broker.domain.job import Constraints
from broker.domain.outcome import Outcome
from broker.domain.rerun import RerunRefused
from broker.front import Front
from broker.intake.batch_files import BatchRequest
from broker.intake.reruns import RerunTerms
from broker.intake.uploads import UPLOAD_PREFIX, Spool
from broker.rules.grouping import canonical_constraints
from broker.rules.submission import check_batch
from broker.wakeups import Topic

__all__ = ["BatchTerms", "BatchesDesk"]

_BATCHES_SHOWN_MAX = 100


class BatchTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for with an uploaded file."""

    window_seconds: int
    max_cost_nano_usd: int | None
    constraints: Constraints
    name: str | None


class BatchesDesk:
    """Making, looking and cancelling, of the asking tenant's batches."""

    def __init__(self, front: Front, lines_max: int | None, upload_bytes_max: int) -> None:
        self._front = front
        self._database = front.database
        self._lines_max = lines_max
        self._upload_bytes_max = upload_bytes_max

    def new_spool(self, _identity: Identity) -> Spool:
        """Where an upload goes, under a name that nobody knows until it is a batch's."""
        return Spool(self._front.uploads, self._upload_bytes_max, self._lines_max)

    def check_terms(self, _identity: Identity, terms: BatchTerms) -> None:
        """Raises Refused for lanes that don't exist, for constraints that leave none, and for windows too short."""
        known = {str(lane.name) for lane in self._front.lanes}
        for name in terms.constraints.lanes:
            if name not in known:
                message = f"lanes names {name[:80]!r}; the catalog has {', '.join(sorted(known))}"
                raise Refused(400, "unknown_lane", message, field="lanes")
        lanes, prospects = self._front.outlook.lanes(), self._front.outlook.prospects()
        refusal = check_batch(lanes, prospects, canonical_constraints(terms.constraints), terms.window_seconds)
        if refusal:
            raise Refused(400, refusal.code, refusal.message, field=refusal.field)

    def create(self, identity: Identity, spool: Spool, terms: BatchTerms) -> BatchState:
        """The uploaded file becomes a batch. Raises UsageError for one that is no batch file."""
        digest = spool.finish()
        folder = self._front.batch_files / new_id().hex()
        record = self._front.intake.create_batch(
            identity,
            BatchRequest(
                # Not the digest of its bytes alone: `batch run` with the same file is another batch.
                source_digest=sha256(digest + folder.name.encode()).digest(),
                source_name=UPLOAD_PREFIX + spool.path.name,
                source_bytes=spool.bytes_count,
                output_path=str(folder / "output.jsonl"),
                error_path=str(folder / "errors.jsonl"),
                window_seconds=terms.window_seconds,
                max_cost_nano_usd=terms.max_cost_nano_usd,
                constraints=terms.constraints,
                name=terms.name,
            ),
        )
        self._front.wakeups.notify(Topic.READER)
        return batch_state(record, Counts())

    def newest(self, identity: Identity) -> list[BatchState]:
        """The newest hundred."""

        def work(connection: Connection) -> list[BatchState]:
            records = batches.newest(connection, identity.tenant, _BATCHES_SHOWN_MAX)
            counts = batches.progress_of(connection, identity.tenant, [record.batch_id for record in records])
            return [batch_state(record, counts.get(record.batch_id, Counts())) for record in records]

        return self._database.read(work)

    def find(self, identity: Identity, text: str) -> BatchState:
        """The batch of this id."""
        batch_id, tenant = _parse_batch_id(text), identity.tenant

        def work(connection: Connection) -> BatchState | None:
            record = batches.find(connection, tenant, batch_id)
            if record is None:
                return None
            late_us = None if record.finished_us is not None else plans.late_batch_us(connection, tenant, batch_id)
            counts = batches.progress_of(connection, tenant, [batch_id])
            return batch_state(record, counts.get(batch_id, Counts()), late_us)

        state = self._database.read(work)
        if state is None:
            raise _unknown_batch(text)
        return state

    def file(self, identity: Identity, text: str, which: str) -> Path:
        """Where its output or its error file lies."""
        record = self._record(identity, text)
        path = record.output_path if which == "output" else record.error_path
        if record.finished_us is None or path is None:
            raise Refused(409, "not_finished", f"{text} is not finished: it is {record.status}")
        if not Path(path).exists():
            raise Refused(410, "file_gone", f"{text}'s {which} file is no longer where it was written")
        return Path(path)

    def cancel(self, identity: Identity, text: str) -> BatchState:
        """Ask that all jobs of a batch that have not ended be cancelled."""
        batch_id = self._record(identity, text).batch_id
        now_us = self._front.clock()
        self._database.write(lambda connection: batches.request_cancel(connection, identity.tenant, batch_id, now_us))
        self._front.hurry()
        return self.find(identity, text)

    def rerun(
        self,
        identity: Identity,
        text: str,
        outcomes: tuple[Outcome, ...],
        window_seconds: int | None,
        max_cost_nano_usd: int | None,
    ) -> BatchState:
        """A batch of the lines that did not succeed in any run of this one; asked again while it runs, the same."""
        before = self._record(identity, text)
        folder = self._front.batch_files / new_id().hex()
        terms = RerunTerms(
            paths=lambda _before: (str(folder / "output.jsonl"), str(folder / "errors.jsonl")),
            outcomes=outcomes,
            window_seconds=window_seconds,
            max_cost_nano_usd=max_cost_nano_usd,
        )
        self._check_rerun(before, window_seconds)
        try:
            made = self._front.reruns.create(identity, before, terms)
        except RerunRefused as error:
            raise Refused(409, error.code, str(error)) from None
        return self.find(identity, format_id("batch", made.batch_id))

    def _check_rerun(self, before: BatchRecord, window_seconds: int | None) -> None:
        lanes, prospects = self._front.outlook.lanes(), self._front.outlook.prospects()
        refusal = check_batch(lanes, prospects, before.constraints, window_seconds or before.window_seconds)
        if refusal:
            raise Refused(400, refusal.code, refusal.message, field=refusal.field)

    def _record(self, identity: Identity, text: str) -> BatchRecord:
        batch_id = _parse_batch_id(text)
        record = self._database.read(lambda connection: batches.find(connection, identity.tenant, batch_id))
        if record is None:
            raise _unknown_batch(text)
        return record


def _parse_batch_id(text: str) -> bytes:
    try:
        return parse_id("batch", text)
    except ValueError:
        raise Refused(404, "unknown_batch", f"{text[:80]!r} is not the id of a batch") from None


def _unknown_batch(text: str) -> Refused:
    return Refused(404, "unknown_batch", f"there is no batch {text[:80]}")
