"""What the doors know of the lanes without asking for each job: prices that hold, and the planner's word."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import structlog

from broker.clock import Clock
from broker.database import plans
from broker.database.connection import Connection, Database
from broker.domain.errors import named
from broker.domain.lane import Lane
from broker.ledger.prices import PricedLanes
from broker.rules.placement.feasible import Prospect

__all__ = ["Outlook"]

_FRESH_SECONDS = 1.0

_log = structlog.get_logger(__name__)


class Outlook:
    """About a second old. Who asks never waits: what is stale is looked up on another thread, for who asks next."""

    def __init__(self, database: Database, lanes: Sequence[Lane], clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._priced = PricedLanes(lanes)
        self._lanes = list(lanes)
        self._prospects: dict[str, Prospect] = {}
        self._looked_at = float("-inf")
        self._looking = threading.Lock()

    def lanes(self) -> list[Lane]:
        """The lanes of the catalog, at the prices that hold."""
        self._refresh()
        return self._lanes

    def prospects(self) -> dict[str, Prospect]:
        """What the planner last said of each lane; nothing before it first did."""
        return self._prospects

    def _refresh(self) -> None:
        if time.monotonic() - self._looked_at > _FRESH_SECONDS and self._looking.acquire(blocking=False):
            self._looked_at = time.monotonic()
            threading.Thread(target=self._look, name="outlook", daemon=True).start()

    def _look(self) -> None:
        def work(connection: Connection) -> dict[str, plans.LanePlan]:
            self._priced.look(connection)
            return plans.lane_plans(connection)

        try:
            said = self._database.read(work)
            self._lanes = self._priced.all_at(self._clock())
            self._prospects = {
                name: Prospect(one.ready, {model: speed.job_s for model, speed in one.speeds.items()})
                for name, one in said.items()
            }
        except Exception as error:  # noqa: BLE001 (the database is away, or closed: what was known stays)
            _log.debug("outlook_not_refreshed", error=named(error))
        finally:
            self._looking.release()
