"""The health of the lanes of a broker that is one process, noted in its database for whoever reads that."""

from __future__ import annotations

import threading
from contextlib import suppress

import msgspec

from broker.clock import Clock
from broker.database import lane_health
from broker.database.connection import Connection, Database
from broker.domain.errors import BrokerError, ErrorCode
from broker.health import LaneFault, LaneHealth

__all__ = ["NotedLaneHealth"]


class NotedLaneHealth(LaneHealth):
    """See `LaneHealth`, which alone decides: nothing noted is read back, so a clock that is set rests no lane."""

    def __init__(self, database: Database, clock: Clock) -> None:
        super().__init__()
        self._database = database
        self._clock = clock
        self._noted: dict[str, LaneFault] = {}
        self._noting = threading.Lock()

    def begin(self) -> None:
        """What a process before this one noted is over."""
        self._database.write(lane_health.forget_every_health, durable=False)

    def fault(self, lane: str, code: ErrorCode, retry_after_s: float = 0.0) -> None:
        """See `HealthBook.fault`."""
        super().fault(lane, code, retry_after_s)
        self._note(lane)

    def success(self, lane: str) -> None:
        """See `HealthBook.success`."""
        super().success(lane)
        if lane in self._noted:
            self._note(lane)

    def _note(self, lane: str) -> None:
        """Once for each rest, and for its end."""
        with self._noting, suppress(BrokerError):  # the database may be closed by now, and nobody needs it then
            state = self.state_of(lane)
            if state == self._noted.get(lane):
                return
            noted = None if state is None or state.health.back_s is not None else state
            self._database.write(lambda connection: self._keep(connection, lane, noted), durable=False)
            if state is None:
                del self._noted[lane]
            else:
                self._noted[lane] = state

    def _keep(self, connection: Connection, lane: str, state: LaneFault | None) -> None:
        if state is None:
            lane_health.forget_health(connection, lane)
            return
        ahead_s = self._clock() / 1_000_000 - self.now_s()
        health = msgspec.structs.replace(
            state.health,
            rests_until_s=state.health.rests_until_s + ahead_s,
            since_s=state.health.since_s + ahead_s,
        )
        lane_health.keep_health(connection, lane, LaneFault(health, state.code))
