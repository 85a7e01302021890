"""The health of the lanes as all processes of the broker know it: kept in the database, read once a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from broker.clock import Clock
from broker.database import lane_health
from broker.database.connection import Connection, Database
from broker.domain.errors import ErrorCode
from broker.health import LaneFault, Rest, jitter, lane_trusts, lanes_on_trial, resting_lanes
from broker.rules.placement import health as rule
from broker.rules.placement.health import LIVE

__all__ = ["SharedLaneHealth"]

_FRESH_SECONDS = 1.0

_log = structlog.get_logger(__name__)


class SharedLaneHealth:
    """See `broker.health.HealthBook`."""

    def __init__(self, database: Database, clock: Clock, jitter: Callable[[], float] = jitter) -> None:
        self._database = database
        self._clock = clock
        self._jitter = jitter
        self._lock = threading.Lock()
        self._states: dict[str, LaneFault] | None = None  # as they were last read
        self._read_at = float("-inf")
        self._reads = 0

    def fault(self, lane: str, code: ErrorCode, retry_after_s: float = 0.0) -> None:
        """See `HealthBook.fault`."""

        def work(connection: Connection) -> rule.Health | None:
            known = lane_health.kept_health(connection).get(lane)
            before = known.health if known else rule.WELL
            after = rule.faulted(before, self._now_s(), LIVE, floor_s=retry_after_s, jitter=self._jitter())
            if after == before:
                return None
            lane_health.keep_health(connection, lane, LaneFault(after, code))
            return after

        rest = self.resting().get(lane)
        if (rest is None or retry_after_s > rest.left_s) and (taken := self._database.write(work)):
            self._forget()
            now_s = self._now_s()
            _log.warning(
                "lane_rested",
                lane=lane,
                error_code=code,
                seconds=round(taken.rests_until_s - now_s, 1),
                away_seconds=round(now_s - taken.since_s, 1),
            )

    def success(self, lane: str) -> None:
        """See `HealthBook.success`."""

        def work(connection: Connection) -> rule.Health | None:
            known = lane_health.kept_health(connection).get(lane)
            if known is None:
                return None
            after = rule.succeeded(known.health, self._now_s(), LIVE)
            if after == rule.WELL:
                lane_health.forget_health(connection, lane)
            elif after != known.health:
                lane_health.keep_health(connection, lane, LaneFault(after, known.code))
            else:
                return None
            return after

        known = self._known().get(lane)
        if known is None or rule.succeeded(known.health, self._now_s(), LIVE) == known.health:
            return
        if (after := self._database.write(work)) is not None:
            self._forget()
            _log.info("lane_recovered", lane=lane, is_well=after == rule.WELL)

    def resting(self) -> dict[str, Rest]:
        """See `HealthBook.resting`."""
        return resting_lanes(self._known(), self._now_s())

    def on_trial(self) -> dict[str, float]:
        """See `HealthBook.on_trial`."""
        return lanes_on_trial(self._known(), self._now_s())

    def trusts(self) -> dict[str, float]:
        """See `HealthBook.trusts`."""
        return lane_trusts(self._known(), self._now_s())

    def _now_s(self) -> float:
        return self._clock() / 1_000_000

    def _known(self) -> dict[str, LaneFault]:
        """Read by one thread at a time, with the lock let go; the others go by what was read before."""
        with self._lock:
            if self._states is not None and time.monotonic() - self._read_at <= _FRESH_SECONDS:
                return self._states
            self._read_at = time.monotonic()
            self._reads += 1
            read = self._reads
        try:
            states = self._database.read(lane_health.kept_health)
        except BaseException:
            self._forget()
            raise
        with self._lock:
            if read == self._reads:  # else it has changed since, or a later look is under way
                self._states = states
        return states

    def _forget(self) -> None:
        with self._lock:
            self._read_at = float("-inf")
            self._reads += 1
