"""Keeper: removes what nobody will ask about, in portions that hold nobody up."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from broker.clock import Clock
from broker.database.connection import Connection, Database
from broker.database.pruning import Pruned, prune_decisions, prune_outbox

__all__ = ["KEEPER_SECONDS", "Keeper"]

KEEPER_SECONDS = 3_600.0
"""How long it rests."""

_KEPT_US = 86_400 * 1_000_000

_log = structlog.get_logger(__name__)


class Keeper:
    """Any number may work at once: what one has removed is gone for the others."""

    def __init__(self, database: Database, clock: Clock, is_stopping: Callable[[], bool] = lambda: False) -> None:
        self._database = database
        self._clock = clock
        self._is_stopping = is_stopping

    def step(self) -> None:
        """One round through all decisions older than a day, and through the outbox."""
        before_us = self._clock() - _KEPT_US
        generation = assignments = plans = 0

        def work(connection: Connection) -> Pruned | None:
            return prune_decisions(connection, generation, before_us)

        while not self._is_stopping() and (pruned := self._database.write(work, durable=False)) is not None:
            generation = pruned.generation
            assignments += pruned.assignments
            plans += pruned.plans
        if assignments or plans:
            _log.info("decisions_pruned", assignments=assignments, plans=plans)
        rows = 0
        while not self._is_stopping() and (removed := self._database.write(prune_outbox, durable=False)):
            rows += removed
        if rows:
            _log.info("outbox_pruned", rows=rows)
