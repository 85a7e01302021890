"""What may be asked of single jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from broker.api.errors import Refused
from broker.api.views import job_state, lane_out
from broker.database import cancelling, lane_states, plans, submissions
from broker.database.connection import Connection
from broker.domain.answers import JobState, LaneOut
from broker.domain.identity import Identity
from broker.domain.ids import format_id, parse_id
from broker.domain.job import SingleJob
from broker.domain.outcome import Outcome
from broker.front import Front
from broker.intake.single_jobs import Answer
from broker.ledger.standing import JobResult, Standing, find_result, has_ended, standing
from broker.rules.admission import Refusal
from broker.rules.submission import Admitted, JobRequest, admit_job

__all__ = ["JobsDesk", "parse_job_id"]


class JobsDesk:
    """Submitting, looking, waiting, cancelling and running again, of the asking tenant's jobs."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._database = front.database

    def admit(self, identity: Identity, requests: Sequence[JobRequest]) -> list[Admitted]:
        """All of them, or Refused for the first that may not run; `field` says which of a list."""
        now_us = self._front.clock()
        lanes, prospects = self._front.outlook.lanes(), self._front.outlook.prospects()
        admitted = []
        for index, request in enumerate(requests):
            checked = admit_job(request, lanes, identity.tenant, now_us, prospects)
            if isinstance(checked, Refusal):
                field = checked.field if len(requests) == 1 else f"[{index}].{checked.field}"
                raise Refused(400, checked.code, checked.message, field=field)
            admitted.append(checked)
        return admitted

    def offer(self, identity: Identity, jobs: Sequence[Admitted], answer: Callable[[Answer], None]) -> None:
        """See `SingleJobs.offer`."""
        self._front.submitting.offer(identity, jobs, answer)

    def watch(self, _identity: Identity, job_id: bytes, told: Callable[[], None]) -> None:
        """See `Endings.watch`; whoever watches asks `has_ended` besides, which knows the tenant's own jobs alone."""
        self._front.wakeups.endings.watch(job_id, told)

    def unwatch(self, _identity: Identity, job_id: bytes, told: Callable[[], None]) -> None:
        """See `Endings.unwatch`."""
        self._front.wakeups.endings.unwatch(job_id, told)

    def find(self, identity: Identity, text: str) -> JobState:
        """The job of this id, as it stands."""
        job = self._standing(identity, text)
        if job.ended_us is not None:
            return job_state(job)
        resting = self._front.health.resting()

        def work(connection: Connection) -> tuple[int | None, tuple[LaneOut, ...]]:
            late_us = plans.late_job_us(connection, identity.tenant, job.job_id)
            held = lane_states.held_lanes(connection)
            plan = plans.of_job(connection, identity.tenant, job.job_id) if held or resting else None
            if plan is None or job.lane is not None:
                return late_us, ()
            now_us = self._front.clock()
            names = sorted(one.lane for one in plan.candidates)
            found = (lane_out(name, held.get(name), resting.get(name), now_us) for name in names)
            return late_us, tuple(one for one in found if one is not None)

        return job_state(job, *self._database.read(work))

    def has_ended(self, identity: Identity, job_id: bytes) -> bool:
        """Whether the job has an outcome."""
        ended = self._database.read(lambda connection: has_ended(connection, identity.tenant, job_id))
        if ended is None:
            raise _unknown_job(format_id("job", job_id))
        return ended

    def result(self, identity: Identity, text: str) -> JobResult:
        """What an ended job brought."""
        job_id = parse_job_id(text)
        result = self._database.read(lambda connection: find_result(connection, identity.tenant, job_id))
        if result is None:
            status = self._standing(identity, text).status
            raise Refused(409, "not_ended", f"{text} has not ended: it is {status}")
        return result

    def cancel(self, identity: Identity, text: str) -> JobState:
        """Ask that a job be cancelled; one that has ended stays as it ended."""
        job = self._standing(identity, text)
        if job.ended_us is None:
            now_us = self._front.clock()
            self._database.write(lambda connection: cancelling.request(connection, identity.tenant, job.job_id, now_us))
            self._front.hurry()
        return self.find(identity, text)

    def redriven(self, identity: Identity, text: str) -> Admitted:
        """The job that runs an ended one again, with the same payload, window and terms; still to be offered."""
        job = self._standing(identity, text)
        if job.ended_us is None:
            raise Refused(409, "not_ended", f"{text} is {job.status}: only a job that has ended can be run again")
        if job.status == Outcome.SUCCEEDED:
            raise Refused(409, "succeeded", f"{text} has succeeded: there is nothing to run again")
        original = self._database.read(lambda connection: submissions.original(connection, identity.tenant, job.job_id))
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
            redrive_of=job.job_id,
        )
        return Admitted(again, idempotency_key=f"redrive:{job.job_id.hex()}")

    def _standing(self, identity: Identity, text: str) -> Standing:
        job_id = parse_job_id(text)
        job = self._database.read(lambda connection: standing(connection, identity.tenant, job_id))
        if job is None:
            raise _unknown_job(text)
        return job


def parse_job_id(text: str) -> bytes:
    """The id in a path. Raises Refused."""
    try:
        return parse_id("job", text.removeprefix("batch_req_"))
    except ValueError:
        shown = format_id("job", bytes(16))
        raise Refused(404, "unknown_job", f"{text[:80]!r} is not the id of a job, such as {shown}") from None


def _unknown_job(text: str) -> Refused:
    return Refused(404, "unknown_job", f"there is no job {text[:80]}")
