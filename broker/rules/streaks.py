"""Whether a lane works: it has done jobs, and did not just fail several in a row.

What a failed job is judged by. A success of any other job says that the server is well; failures of some jobs one after
another, with no success between, say that it isn't, whatever each of them was.
"""

from __future__ import annotations

from broker.domain.errors import ErrorCode
from broker.domain.outcome import Outcome
from broker.rules.evidence import Evidence, evidence_of

__all__ = ["FAILURES_IN_A_ROW", "Streaks"]

FAILURES_IN_A_ROW = 3
"""So many failures with no success between them are the lane's."""

_REMEMBERED_MAX = 10_000


class Streaks:
    """Follows each lane's ends, in the order in which they come.

    What one process sees of a lane is enough: where several share its events, each sees a part of its successes, and
    blames a job later, never sooner.
    """

    def __init__(self) -> None:
        self._succeeded_us: dict[str, int] = {}
        self._in_a_row: dict[str, int] = {}
        self._failed_since: dict[str, set[bytes]] = {}

    def note_success(self, lane: str, ended_us: int) -> None:
        """The lane did a job, which ended then by its worker's clock."""
        self._succeeded_us[lane] = max(ended_us, self._succeeded_us.get(lane, 0))
        self._in_a_row[lane] = 0
        self._failed_since.pop(lane, None)

    def note_failure(self, lane: str, outcome: Outcome, code: ErrorCode | None, started_us: int) -> bool:
        """A job that began then did not succeed there. Whether the lane worked all the same, as far as can be told."""
        says = evidence_of(code) if code is not None and outcome is Outcome.FAILED else None
        if says not in (None, Evidence.UNSUITED) and lane in self._in_a_row:
            self._in_a_row[lane] += 1
        return self.works(lane) or self._succeeded_us.get(lane, -1) >= started_us

    def note_job(self, lane: str, job_id: bytes) -> None:
        """This job failed there. If it is the next to fail there too, nothing else has shown that the lane works."""
        failed = self._failed_since.setdefault(lane, set())
        if len(failed) < _REMEMBERED_MAX:
            failed.add(job_id)

    def has_failed_since(self, lane: str, job_id: bytes) -> bool:
        """Whether this job has failed there since the lane's last success."""
        return job_id in self._failed_since.get(lane, ())

    def works(self, lane: str) -> bool:
        """Whether it has succeeded, and not failed FAILURES_IN_A_ROW times since."""
        return self._in_a_row.get(lane, FAILURES_IN_A_ROW) < FAILURES_IN_A_ROW

    def is_at_fault(self, lane: str, code: ErrorCode) -> bool:
        """Whether a failure with this code speaks against the lane rather than the job."""
        match evidence_of(code):
            case Evidence.SERVER:
                return True
            case Evidence.LIMIT | Evidence.OPEN:
                return not self.works(lane)
            case _:
                return False
