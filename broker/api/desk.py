"""The desk: what a producer or an operator may ask of a running broker, each answered in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from broker.api.errors import Refused
from broker.api.instances import InstanceView, show_instances
from broker.api.prices import PricesView, take_prices_in
from broker.api.views import BatchView, JobView, LaneView, batch_view, job_view, lane_view
from broker.database import batches, cancelling, lane_states, plans, shards, submissions
from broker.database.batches import BatchRecord
from broker.database.connection import Connection
from broker.domain.errors import UsageError
from broker.domain.ids import format_id, new_id, parse_id
from broker.domain.job import Constraints, SingleJob
from broker.domain.lane import Lane, LaneState
from broker.domain.outcome import Outcome
from broker.front import TENANT, Front
from broker.intake.batch_files import BatchRequest
from broker.intake.single_jobs import Answer
from broker.intake.uploads import UPLOAD_PREFIX, Spool
from broker.ledger.prices import PricedLanes
from broker.ledger.questions import Filters, summary
from broker.ledger.standing import JobResult, Standing, find_result, has_ended, standing
from broker.rules.admission import Refusal
from broker.rules.grouping import canonical_constraints
from broker.rules.submission import Admitted, JobRequest, admit_job, check_batch
from broker.wakeups import Topic

__all__ = ["BatchTerms", "Desk", "parse_job_id"]

_BATCHES_SHOWN_MAX = 100


class BatchTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for with an uploaded file."""

    window_seconds: int
    max_cost_nano_usd: int | None
    constraints: Constraints
    name: str | None


class Desk:
    """Answers for the door's one tenant; other tenants' jobs are unknown here. Every method blocks on the database."""

    def __init__(self, front: Front, lines_max: int | None, upload_bytes_max: int) -> None:
        self._front = front
        self._database = front.database
        self._lanes: Sequence[Lane] = front.lanes
        self._priced = PricedLanes(front.lanes)
        self._lines_max = lines_max
        self._upload_bytes_max = upload_bytes_max

    # Jobs.

    def admit(self, requests: Sequence[JobRequest]) -> list[Admitted]:
        """All of them, or Refused for the first that may not run; `field` says which of a list."""
        now_us = self._front.clock()
        lanes, prospects = self._front.outlook.lanes(), self._front.outlook.prospects()
        admitted = []
        for place, request in enumerate(requests):
            found = admit_job(request, lanes, TENANT, now_us, prospects)
            if isinstance(found, Refusal):
                field = found.field if len(requests) == 1 else f"[{place}].{found.field}"
                raise Refused(400, found.code, found.message, field=field)
            admitted.append(found)
        return admitted

    def offer(self, jobs: Sequence[Admitted], answer: Callable[[Answer], None]) -> None:
        """See `Submitting.offer`."""
        self._front.submitting.offer(TENANT, jobs, answer)

    def watch(self, job_id: bytes, told: Callable[[], None]) -> None:
        """See `Endings.watch`."""
        self._front.wakeups.endings.watch(job_id, told)

    def unwatch(self, job_id: bytes, told: Callable[[], None]) -> None:
        """See `Endings.unwatch`."""
        self._front.wakeups.endings.unwatch(job_id, told)

    def job(self, text: str) -> JobView:
        """The job of this id, as it stands."""
        found = self._standing(text)
        if found.ended_us is not None:
            return job_view(found)
        return job_view(found, self._database.read(lambda connection: plans.late_job_us(connection, found.job_id)))

    def has_ended(self, job_id: bytes) -> bool:
        """Whether the job has an outcome."""
        found = self._database.read(lambda connection: has_ended(connection, job_id, TENANT))
        if found is None:
            raise _unknown_job(format_id("job", job_id))
        return found

    def result(self, text: str) -> JobResult:
        """What an ended job brought."""
        job_id = parse_job_id(text)
        found = self._database.read(lambda connection: find_result(connection, job_id, TENANT))
        if found is None:
            status = self._standing(text).status
            raise Refused(409, "not_ended", f"{text} has not ended: it is {status}")
        return found

    def cancel_job(self, text: str) -> JobView:
        """Ask that a job be cancelled; one that has ended stays as it ended."""
        found = self._standing(text)
        if found.ended_us is None:
            now_us = self._front.clock()
            self._database.write(lambda connection: cancelling.request(connection, found.job_id, now_us))
            self._hurry()
        return self.job(text)

    def redriven(self, text: str) -> Admitted:
        """The job that runs an ended one again, with the same payload, window and terms; still to be offered."""
        found = self._standing(text)
        if found.ended_us is None:
            raise Refused(409, "not_ended", f"{text} is {found.status}: only a job that has ended can be run again")
        if found.status == Outcome.SUCCEEDED:
            raise Refused(409, "succeeded", f"{text} has succeeded: there is nothing to run again")
        original = self._database.read(lambda connection: submissions.original(connection, found.job_id))
        if original is None or original.body is None:
            raise Refused(410, "payload_gone", f"{text}'s request is no longer kept, so it can't be run again")
        now_us = self._front.clock()
        again = SingleJob(
            endpoint=original.endpoint,
            model=original.model,
            body=original.body,
            constraints=original.constraints,
            submitted_us=now_us,
            deadline_us=now_us + original.deadline_us - original.submitted_us,
            budget_nano_usd=original.budget_nano_usd,
            tags=original.tags,
            redrive_of=found.job_id,
        )
        return Admitted(again, idempotency_key=f"redrive:{found.job_id.hex()}")

    def _standing(self, text: str) -> Standing:
        job_id = parse_job_id(text)
        found = self._database.read(lambda connection: standing(connection, job_id, TENANT))
        if found is None:
            raise _unknown_job(text)
        return found

    def _hurry(self) -> None:
        """What waits is ended by the closer; workers are told at the lease door, which they are asked to go to."""
        self._front.wakeups.notify(Topic.CLOSER, Topic.READER)
        self._front.renew_soon()

    # Batches.

    def new_spool(self) -> Spool:
        """Where an upload goes."""
        return Spool(self._front.uploads, self._upload_bytes_max, self._lines_max)

    def check_terms(self, terms: BatchTerms) -> None:
        """Raises Refused for lanes that don't exist, for constraints that leave none, and for windows too short."""
        known = {str(lane.name) for lane in self._lanes}
        for name in terms.constraints.lanes:
            if name not in known:
                message = f"lanes names {name[:80]!r}; the catalog has {', '.join(sorted(known))}"
                raise Refused(400, "unknown_lane", message, field="lanes")
        lanes, prospects = self._front.outlook.lanes(), self._front.outlook.prospects()
        refusal = check_batch(lanes, prospects, canonical_constraints(terms.constraints), terms.window_seconds)
        if refusal:
            raise Refused(400, refusal.code, refusal.message, field=refusal.field)

    def create_batch(self, spool: Spool, terms: BatchTerms) -> BatchView:
        """The uploaded file becomes a batch."""
        try:
            digest = spool.finish()
        except UsageError as error:
            raise Refused(400, "invalid_file", str(error), field="file") from None
        folder = self._front.batch_files / new_id().hex()
        record = self._front.intake.create_batch(
            BatchRequest(
                tenant_id=TENANT,
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
            )
        )
        self._front.wakeups.notify(Topic.READER)
        return batch_view(record, batches.Counts())

    def list_batches(self) -> list[BatchView]:
        """The newest hundred."""

        def work(connection: Connection) -> list[BatchView]:
            found = batches.newest(connection, TENANT, _BATCHES_SHOWN_MAX)
            return [batch_view(record, batches.progress(connection, record.batch_id)) for record in found]

        return self._database.read(work)

    def batch(self, text: str) -> BatchView:
        """The batch of this id."""
        batch_id = _parse_batch_id(text)

        def work(connection: Connection) -> BatchView | None:
            record = batches.get(connection, batch_id)
            if record is None:
                return None
            late_us = None if record.finished_us is not None else plans.late_batch_us(connection, batch_id)
            return batch_view(record, batches.progress(connection, batch_id), late_us)

        found = self._database.read(work)
        if found is None:
            raise Refused(404, "unknown_batch", f"there is no batch {text[:80]}")
        return found

    def batch_file(self, text: str, which: str) -> Path:
        """Where its output or its error file lies."""
        record = self._batch_record(text)
        path = record.output_path if which == "output" else record.error_path
        if record.finished_us is None or path is None:
            raise Refused(409, "not_finished", f"{text} is not finished: it is {record.status}")
        if not Path(path).exists():
            raise Refused(410, "file_gone", f"{text}'s {which} file is no longer where it was written")
        return Path(path)

    def cancel_batch(self, text: str) -> BatchView:
        """Ask that all jobs of a batch that have not ended be cancelled."""
        batch_id = self._batch_record(text).batch_id
        now_us = self._front.clock()
        self._database.write(lambda connection: batches.request_cancel(connection, batch_id, now_us))
        self._hurry()
        return self.batch(text)

    def _batch_record(self, text: str) -> BatchRecord:
        batch_id = _parse_batch_id(text)
        record = self._database.read(lambda connection: batches.get(connection, batch_id))
        if record is None:
            raise Refused(404, "unknown_batch", f"there is no batch {text[:80]}")
        return record

    # Lanes and the ledger.

    def lanes(self) -> list[LaneView]:
        """All lanes, in the catalog's order."""

        def work(connection: Connection) -> list[LaneView]:
            held, taken = lane_states.held_lanes(connection), shards.open_shards(connection)
            said = plans.lane_plans(connection)
            self._priced.look(connection)
            resting, live = self._front.health.resting(), self._front.live_slots(connection)
            return [
                lane_view(
                    lane,
                    live.get(lane.name, 0),
                    _state_shown(held.get(lane.name), taken.get(lane.name, 0)),
                    taken.get(lane.name, 0),
                    resting.get(lane.name),
                    said.get(str(lane.name)),
                )
                for lane in self._priced.all_at(self._front.clock())
            ]

        return self._database.read(work)

    def _check_lane(self, name: str) -> None:
        if name not in {str(lane.name) for lane in self._lanes}:
            known = ", ".join(str(lane.name) for lane in self._lanes)
            raise Refused(404, "unknown_lane", f"there is no lane {name[:80]!r}; the catalog has {known}")

    def set_lane_state(self, name: str, state: LaneState) -> LaneView:
        """Let a lane have new shards, or not."""
        self._check_lane(name)
        now_us = self._front.clock()
        self._database.write(lambda connection: lane_states.set_state(connection, name, state, now_us))
        self._front.wakeups.notify(Topic.DISPATCHER)
        return next(view for view in self.lanes() if view.name == name)

    def import_prices(self, name: str, content: bytes) -> PricesView:
        """See `take_prices_in`."""
        return take_prices_in(self._front, name, content)

    def instances(self, lane: str | None, ended: bool) -> list[InstanceView]:
        """See `show_instances`."""
        return show_instances(self._front, self._priced, lane, ended=ended)

    def desired(self, name: str) -> int:
        """How many instances the planner wants of a lane."""
        self._check_lane(name)
        said = self._database.read(plans.lane_plans).get(name)
        return said.desired if said else 0

    def ledger_summary(self, by: str) -> list[dict[str, Any]]:
        """See `broker.ledger.questions.summary`."""
        keys = [key.strip() for key in by.split(",") if key.strip()]
        try:
            return self._database.read(lambda connection: summary(connection, keys, Filters(tenant_id=TENANT)))
        except UsageError as error:
            raise Refused(400, "invalid_field", str(error).removeprefix("--"), field="by") from None


def parse_job_id(text: str) -> bytes:
    """The id in a path. Raises Refused."""
    try:
        return parse_id("job", text.removeprefix("batch_req_"))
    except ValueError:
        shown = format_id("job", bytes(16))
        raise Refused(404, "unknown_job", f"{text[:80]!r} is not the id of a job, such as {shown}") from None


def _unknown_job(text: str) -> Refused:
    return Refused(404, "unknown_job", f"there is no job {text[:80]}")


def _parse_batch_id(text: str) -> bytes:
    try:
        return parse_id("batch", text)
    except ValueError:
        raise Refused(404, "unknown_batch", f"{text[:80]!r} is not the id of a batch") from None


def _state_shown(state: LaneState | None, shards_count: int) -> str:
    if state is LaneState.DRAINING and shards_count == 0:
        return "drained"
    return state or LaneState.OPEN
