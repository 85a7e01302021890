"""What each lane did over the last week, counted from the ledger as it grows; a restart loses none of it.

What was recorded lately is counted anew at each look, since writers commit at different moments; once it is two
seconds old it is added up, and kept every ten seconds.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from sqlalchemy import Connection, func, select

from broker.database import work_counts
from broker.database.connection import Database
from broker.database.fencing import alone
from broker.domain.outcome import Outcome
from broker.ledger.tables import attempt
from broker.rules.placement.shares import WorkLog

__all__ = ["Counted", "WorkDone"]

_US = 1_000_000
_TEN_MINUTES_US = 600 * _US
_SETTLED_US = 2 * _US
_KEEP_US = 10 * _US
_LATELY_S = 6 * 3_600.0
_WEEK_S = 7 * 86_400.0
_COUNTED_AT_ONCE_US = 600 * _US
"""How much of the ledger one look reads at most, while it catches up with what was recorded without a planner."""

Jobs = dict[tuple[str, str], int]


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """What a look found: at first what was `kept` until `kept_us`; then what settled until `until_us`, and fresher."""

    until_us: int
    kept: list[tuple[int, str, str, int]] = []
    kept_us: int | None = None
    settled: Jobs = {}
    fresh: Jobs = {}


class WorkDone:
    """Jobs that succeeded, by lane and model."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._logs = (WorkLog(_LATELY_S), WorkLog(_WEEK_S))
        self._fresh: Jobs = {}
        self._unkept: dict[tuple[int, str, str], int] = {}
        self._counted_us: int | None = None
        self._kept_us: int | None = None
        self._tried_us = 0

    def _add(self, at_s: float, lane: str, model: str, jobs: float) -> None:
        for log in self._logs:
            log.add(at_s, lane, model, jobs)

    def read(self, connection: Connection, now_us: int) -> Counted:
        """What there is to count now; changes nothing."""
        settled_us = now_us - _SETTLED_US
        if self._counted_us is None:
            oldest_us = now_us - int(_WEEK_S * _US)
            kept = work_counts.kept_work(connection, oldest_us // _US // 60)
            kept_us = work_counts.counted_us(connection)
            # Who begins to count doesn't count what was before.
            return Counted(until_us=max(kept_us or settled_us, oldest_us), kept=kept, kept_us=kept_us)
        until_us = max(self._counted_us, min(settled_us, self._counted_us + _COUNTED_AT_ONCE_US))
        return Counted(
            until_us=until_us,
            settled=_succeeded(connection, self._counted_us, until_us),
            fresh=_succeeded(connection, until_us, now_us) if until_us >= settled_us else {},
        )

    def note(self, found: Counted) -> None:
        """Count it."""
        if self._counted_us is None:
            self._kept_us = found.kept_us
            for minute, lane, model, jobs in found.kept:
                self._add(minute * 60.0, lane, model, jobs)
        minute = found.until_us // _TEN_MINUTES_US * 10
        for (lane, model), jobs in found.settled.items():
            self._add(found.until_us / _US, lane, model, jobs)
            key = (minute, lane, model)
            self._unkept[key] = self._unkept.get(key, 0) + jobs
        self._counted_us, self._fresh = found.until_us, found.fresh

    def lately(self, now_us: int) -> Mapping[tuple[str, str], float]:
        """How many over the last six hours, by lane and model."""
        return self._with_fresh(self._logs[0].jobs(now_us / _US))

    def week(self, now_us: int) -> Mapping[tuple[str, str], float]:
        """How many over the last week, by lane and model."""
        return self._with_fresh(self._logs[1].jobs(now_us / _US))

    def _with_fresh(self, counted: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
        found = dict(counted)
        for key, jobs in self._fresh.items():
            found[key] = found.get(key, 0.0) + jobs
        return found

    def keep(self, database: Database, now_us: int) -> None:
        """Write down what was counted, now and then. Where another planner has done so, begin with what it wrote."""
        until_us = self._counted_us
        if until_us is None or not self._unkept or now_us - self._tried_us < _KEEP_US:
            return
        self._tried_us = now_us

        def work(connection: Connection) -> bool:
            alone(connection, "planner")
            if work_counts.counted_us(connection) != self._kept_us:
                return False
            work_counts.keep_work(connection, self._unkept, until_us)
            work_counts.forget_before(connection, int(now_us / _US - _WEEK_S) // 60)
            return True

        if database.write(work, durable=False):
            self._unkept, self._kept_us = {}, until_us
        else:
            self._begin()


def _succeeded(connection: Connection, after_us: int, until_us: int) -> Jobs:
    """Attempts recorded then that succeeded, by lane and model."""
    rows = connection.execute(
        select(attempt.c.lane, attempt.c.model, func.count())
        .where(
            attempt.c.recorded_us > after_us,
            attempt.c.recorded_us <= until_us,
            attempt.c.outcome == Outcome.SUCCEEDED,
        )
        .group_by(attempt.c.lane, attempt.c.model)
    )
    return {(lane, model): int(jobs) for lane, model, jobs in rows}
