"""Whether a server works: it has done jobs, and did not just fail several in a row.

What a failed job is judged by. A success of any other job says that the server is well; failures of some jobs one after
another, with no success between, say that it isn't, whatever each of them was.

A lane's workers have servers of their own. So a job is judged by what its own worker did besides: a sick server blames
no job for another's successes. Whether the lane rests is judged by all of them together.
"""

from __future__ import annotations

import math
from collections import defaultdict

from broker.domain.errors import ErrorCode
from broker.domain.outcome import Outcome
from broker.rules.evidence import RETRY_AFTER_LONG_S, Evidence, evidence_of
from broker.rules.retrying import FAILURES_MAX

__all__ = ["FAILURES_IN_A_ROW", "PATIENCE_MAX", "Streaks"]

FAILURES_IN_A_ROW = 3
"""So many failures with no success between them are the lane's."""

PATIENCE_MAX = 8
"""So many more tries at most has a job on a server that fails many jobs, of which nearly all go well in the end."""

_BY_CHANCE = 1e-5
_LOOKED_BACK = 256  # jobs; what is older counts half, and half of that
_REMEMBERED_MAX = 10_000
_WORKERS_MAX = 10_000
"""Of workers that come and go; of more, who came first is forgotten, and has to show anew that it works."""


class _Streak:
    """`in_a_row`: the failures since the last success, FAILURES_IN_A_ROW before the first.

    `done`: the jobs that succeeded lately, and `failed_once` those that failed for a first time while it worked.
    """

    __slots__ = ("done", "failed_once", "failed_since", "in_a_row", "succeeded_us")

    def __init__(self) -> None:
        self.done = self.failed_once = 0.0
        self.succeeded_us = -1
        self.in_a_row = FAILURES_IN_A_ROW
        self.failed_since: set[bytes] = set()

    @property
    def works(self) -> bool:
        return self.in_a_row < FAILURES_IN_A_ROW


class Streaks:
    """Follows the ends of each lane and each of its workers, in the order in which they come.

    What one process sees of a lane is enough: where several share its events, each sees a part of its successes, and
    blames a job later, never sooner.
    """

    def __init__(self) -> None:
        self._lanes: defaultdict[str, _Streak] = defaultdict(_Streak)
        self._workers: dict[tuple[str, str], _Streak] = {}

    def note_success(self, lane: str, worker: str, ended_us: int) -> None:
        """The worker did a job, which ended then by its clock."""
        self._lanes[lane].in_a_row = 0
        own = self._worker(lane, worker)
        own.succeeded_us, own.in_a_row = max(ended_us, own.succeeded_us), 0
        own.failed_since.clear()

    def note_failure(self, lane: str, worker: str, outcome: Outcome, code: ErrorCode | None, started_us: int) -> bool:
        """A job that began then did not succeed there. Whether its server worked all the same, as far as it shows."""
        says = evidence_of(code) if code is not None and outcome is Outcome.FAILED else None
        own = self._worker(lane, worker)
        if says not in (None, Evidence.UNSUITED):
            self._lanes[lane].in_a_row += 1
            own.in_a_row += 1
        return own.works or own.succeeded_us >= started_us

    def note_job(self, lane: str, worker: str, job_id: bytes) -> None:
        """This job failed there. If it is the next to fail there too, nothing else has shown that the server works."""
        failed = self._worker(lane, worker).failed_since
        if len(failed) < _REMEMBERED_MAX:
            failed.add(job_id)

    def note_ends(self, lane: str, worker: str, done: int, failed_once: int) -> None:
        """So many jobs succeeded there, and so many failed for a first time though the server worked."""
        own = self._worker(lane, worker)
        own.done += done
        own.failed_once += failed_once
        if own.done + own.failed_once > _LOOKED_BACK:
            own.done, own.failed_once = own.done / 2, own.failed_once / 2

    def patience(self, lane: str, worker: str) -> int:
        """How many more failures than of a good server are needed to blame a job: so many that chance can't be it.

        A server that fails every second call fails one job in sixteen four times; it would be blamed for nothing.
        """
        own = self._worker(lane, worker)
        part = min((own.failed_once - 1) / max(1.0, own.done), 0.9)  # without the job that is judged
        if part <= 0:
            return 0
        return min(max(0, math.ceil(math.log(_BY_CHANCE) / math.log(part)) - FAILURES_MAX), PATIENCE_MAX)

    def has_failed_since(self, lane: str, worker: str, job_id: bytes) -> bool:
        """Whether this job has failed there since the worker's last success."""
        return job_id in self._worker(lane, worker).failed_since

    def works(self, lane: str) -> bool:
        """Whether it has succeeded, and not failed FAILURES_IN_A_ROW times since."""
        return self._lanes[lane].works

    def is_at_fault(self, lane: str, code: ErrorCode, retry_after_s: float = 0.0) -> bool:
        """Whether a failure with this code speaks against the lane rather than the job.

        A server that asks to be left alone for long gets nothing from its worker, whatever it did before.
        """
        match evidence_of(code):
            case Evidence.SERVER:
                return True
            case Evidence.LIMIT | Evidence.OPEN:
                return retry_after_s > RETRY_AFTER_LONG_S or not self.works(lane)
            case _:
                return False

    def _worker(self, lane: str, worker: str) -> _Streak:
        own = self._workers.get((lane, worker))
        if own is None:
            if len(self._workers) >= _WORKERS_MAX:
                del self._workers[next(iter(self._workers))]
            own = self._workers[lane, worker] = _Streak()
        return own
