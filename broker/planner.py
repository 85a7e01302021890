"""Planner: for each group of waiting jobs, which lanes may serve it, in which order, and why.

It sees groups and lanes, never single jobs. A new plan is a new generation; the dispatcher checks in its
own transaction that it acts on the newest.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import msgspec
import structlog

from broker.clock import Clock
from broker.database import jobs, plans, ready
from broker.database.connection import Connection, Database
from broker.database.fencing import alone
from broker.domain.lane import Lane
from broker.rules.planning import GroupPlan, plan_group
from broker.wakeups import Topic, Wakeups

__all__ = ["Planner"]

_log = structlog.get_logger(__name__)


class Planner:
    """Keeps the current plan true."""

    def __init__(self, database: Database, lanes: Sequence[Lane], clock: Clock, wakeups: Wakeups) -> None:
        self._database = database
        self._lanes = lanes
        self._clock = clock
        self._wakeups = wakeups
        self._planned: dict[bytes, GroupPlan] = {}
        self._generation = -1

    def step(self) -> None:
        """Plan anew if a group waits that the current plan does not know, or if that plan is another process's."""
        waiting, generation = self._database.read(self._look)
        if waiting and (generation != self._generation or not waiting <= self._planned.keys()):
            decisions = self._decide(waiting)
            self._publish(decisions)
            self._wakeups.notify(Topic.DISPATCHER)

    def _look(self, connection: Connection) -> tuple[set[bytes], int]:
        """The groups that wait, and the generation of the plan in force."""
        groups = {group.group_id for group in ready.waiting_groups(connection, self._clock())}
        return groups, plans.current_plan(connection)[0] if groups else self._generation

    def _decide(self, group_ids: set[bytes]) -> dict[bytes, GroupPlan]:
        groups = self._database.read(lambda connection: jobs.load_groups(connection, sorted(group_ids)))
        return {group.group_id: plan_group(group.key, self._lanes) for group in groups}

    def _publish(self, decisions: dict[bytes, GroupPlan]) -> None:
        now_us = self._clock()
        inputs = sha256(msgspec.msgpack.encode([sorted(decisions), list(self._lanes)])).digest()

        def work(connection: Connection) -> int:
            alone(connection, "planner")
            generation = plans.current_plan(connection)[0] + 1
            plans.write_plan(connection, generation, decisions, inputs, now_us)
            return generation

        generation = self._generation = self._database.write(work, durable=False)
        self._planned = decisions
        _log.info("plan_made", generation=generation, groups=len(decisions))
