"""The health of the lanes as all processes of the broker know it: kept in the database, read once a second."""

from __future__ import annotations

import threading
import time

import structlog

from broker.clock import Clock
from broker.database import workers
from broker.database.connection import Connection, Database
from broker.database.workers import LaneRest
from broker.domain.errors import ErrorCode
from broker.health import rest_seconds_after

__all__ = ["SharedLaneHealth"]

_FRESH_SECONDS = 1.0

_log = structlog.get_logger(__name__)


class SharedLaneHealth:
    """See `broker.health.Health`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._lock = threading.Lock()
        self._rests: dict[str, LaneRest] = {}
        self._read_at = float("-inf")

    def fault(self, lane: str, code: ErrorCode) -> None:
        """See `Health.fault`."""

        def work(connection: Connection) -> LaneRest | None:
            now_us = self._clock()
            until_us, last_seconds, _ = workers.lane_rests(connection).get(lane, (0, 0.0, code))
            if now_us < until_us:
                return None
            seconds = rest_seconds_after(last_seconds)
            taken = (now_us + int(seconds * 1_000_000), seconds, code)
            workers.rest(connection, lane, taken)
            return taken

        until_us, *_ = self._known().get(lane, (0, 0.0, code))
        if self._clock() >= until_us and (taken := self._database.write(work)):
            self._forget()
            _log.warning("lane_rested", lane=lane, error_code=code, seconds=taken[1])

    def success(self, lane: str) -> None:
        """See `Health.success`."""
        if lane in self._known():
            self._database.write(lambda connection: workers.wake(connection, [lane]))
            self._forget()
            _log.info("lane_recovered", lane=lane)

    def resting(self) -> dict[str, ErrorCode]:
        """See `Health.resting`."""
        now_us = self._clock()
        return {lane: code for lane, (until_us, _, code) in self._known().items() if now_us < until_us}

    def _known(self) -> dict[str, LaneRest]:
        with self._lock:
            if time.monotonic() - self._read_at > _FRESH_SECONDS:
                self._rests = self._database.read(workers.lane_rests)
                self._read_at = time.monotonic()
            return self._rests

    def _forget(self) -> None:
        with self._lock:
            self._read_at = float("-inf")
