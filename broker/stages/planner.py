"""Planner: how many instances each lane should hold, and for each group of waiting jobs which lanes may serve it.

It sees groups and lanes, never single jobs. It looks once a second, more often while lanes work. It plans when a group
waits that it doesn't know, when a lane's price, presence, speed or health changed, when a provider goes beyond its
share or comes back under it, and every two seconds while work waits. What it decided anew makes a generation, kept
with its reasons; the dispatcher checks in its own transaction that it acts on the newest. Groups that come and go are
planned on: their next jobs don't wait for a look.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from hashlib import sha256

import msgspec
import structlog

from broker.clock import Clock
from broker.database import plans, work_counts
from broker.database.connection import Connection, Database
from broker.database.fencing import alone
from broker.database.lane_work import Capacity
from broker.database.plans import LanePlan
from broker.domain.job import GroupKey
from broker.domain.lane import Lane, Supply
from broker.health import HealthBook
from broker.rules.decisions import GroupPlan
from broker.rules.placement.facts import facts_of, terms_of
from broker.rules.placement.lanes import LaneNow
from broker.rules.placement.planning import Memory, Plan, Situation, make_plan
from broker.rules.placement.policy import Policy
from broker.rules.placement.shares import done_by_provider, over_share, share_limits
from broker.rules.placement.table import LaneTable
from broker.rules.placement.work import Group
from broker.rules.planning import BeyondShare, differs
from broker.stages.watching import LaneSeen, Seen, Watching
from broker.wakeups import Topic, Wakeups

__all__ = ["Planner"]

_US = 1_000_000
_LOOK_SECONDS = 1.0
_BUSY_LOOK_SECONDS = 0.4
_PLAN_SECONDS = 2.0
_IDLE_SECONDS = 10.0
_SPEED_TOLERANCE = 0.2
_DUE_TOLERANCE_US = 30 * _US
_OFF_SPOT = "/off-spot"
"""What follows a group's name for its jobs that were preempted too often."""

_PLANNED_MAX = 4_000
"""Groups beyond those that wait. The dispatcher forgets earlier, so that it acts on no decision that is not kept up."""

_log = structlog.get_logger(__name__)


class _Planned(msgspec.Struct, frozen=True):
    """A group and the decision on it that holds."""

    key: GroupKey
    plan: GroupPlan


class Planner:
    """Keeps the current plan true."""

    def __init__(
        self,
        database: Database,
        lanes: Sequence[Lane],
        clock: Clock,
        wakeups: Wakeups,
        health: HealthBook,
        capacity: Capacity,
        policy: Policy | None = None,
    ) -> None:
        self._database = database
        self._wakeups = wakeups
        self._policy = msgspec.structs.replace(policy or Policy(), control_s=_PLAN_SECONDS)
        self._watching = Watching(database, lanes, clock, health, capacity, policy=self._policy)
        self._memory = Memory()
        self._planned: dict[bytes, _Planned] = {}
        self._said: dict[str, LanePlan] = {}
        self._late: frozenset[bytes] = frozenset()
        self._beyond: Mapping[str, BeyondShare] | None = None
        self._generation = -1
        self._planned_us = 0
        self.rest_seconds = _LOOK_SECONDS
        """How long it may rest before its next look."""

    def step(self) -> None:
        """Look, and plan anew if there is a reason to."""
        seen = self._watching.look()
        self.rest_seconds = _BUSY_LOOK_SECONDS if seen.is_busy else _LOOK_SECONDS
        if self._is_due(seen):
            plan, beyond = self._decide(seen)
            self._publish(seen, plan, beyond)

    def _is_due(self, seen: Seen) -> bool:
        waits = bool(seen.waiting)
        if waits and seen.generation != self._generation:  # another process has planned, or nobody yet
            self._planned, self._said = {}, {}
            return True
        if any(one.group_id not in self._planned for one in seen.waiting):
            return True
        if any(self._has_changed(one) for one in seen.lanes):
            return True
        if self._policy.limits_shares and self._over(seen) != (self._beyond or {}).keys():
            return True
        rest_s = (seen.now_us - self._planned_us) / _US
        return rest_s >= _PLAN_SECONDS if waits else self._watching.is_elastic and rest_s >= _IDLE_SECONDS

    def _has_changed(self, one: LaneSeen) -> bool:
        """Whether the lane is another than it was at the last plan."""
        said = self._said.get(one.name)
        if said is None or said.ready != one.ready or (said.trouble is None) != (one.trouble is None):
            return True
        return said.price_version != one.lane.price.version or any(
            abs(speed.job_s - said.speeds[model].job_s) > _SPEED_TOLERANCE * said.speeds[model].job_s
            for model, speed in one.speeds.items()
        )

    def _over(self, seen: Seen) -> AbstractSet[str]:
        """The providers that had more than their share."""
        return over_share(done_by_provider(_table(seen), seen.done_lately), self._policy).keys()

    # Deciding.

    def _decide(self, seen: Seen) -> tuple[Plan, dict[str, BeyondShare]]:
        """The plan that follows from what was seen, and the providers that had more than their share."""
        table = _table(seen)
        service_s = _service_s(seen.lanes)
        groups = sorted(self._groups(seen, service_s), key=lambda group: group.start_by_s)
        now_s = seen.now_us / _US
        ahead_s = self._policy.start_slack * max(lane.start_s for lane in table.lanes) + 2 * self._policy.control_s
        situation = Situation(
            now_s=now_s,
            states=tuple(self._lane_now(one) for one in seen.lanes),
            groups=groups,
            streams=self._watching.streams(table, now_s, ahead_s, lambda terms: service_s.get(terms.kind, 0.0)),
            done=done_by_provider(table, seen.done),
        )
        plan, self._memory = make_plan(table, situation, self._memory, self._policy)
        lately = done_by_provider(table, seen.done_lately)
        limits = share_limits(table, now_s, situation.states, groups, lately, self._policy)
        service_max_s = max(service_s.values(), default=0.0)
        beyond = {
            one.provider: BeyondShare(one.provider, one.share, one.part, round((one.start_by_s + service_max_s) * _US))
            for one in limits
        }
        return plan, beyond

    def _lane_now(self, one: LaneSeen) -> LaneNow:
        if one.trouble is not None:
            return LaneNow(0, 0, 0.0)
        said = self._said.get(one.name)
        starting = max(0, said.desired - one.ready) if said and one.lane.supply is Supply.ELASTIC else 0
        return LaneNow(one.ready, starting, one.trust)

    def _groups(self, seen: Seen, service_s: Mapping[str, float]) -> Iterator[Group]:
        """Each group that waits, and those that may have more jobs by now; what stays off spot by itself."""
        waiting = {group.group_id for group in seen.waiting}
        for group_id, planned in self._planned.items():
            if group_id not in waiting:
                yield _group(group_id.hex(), planned.key, planned.key.deadline_us, 0, service_s)
        for group in seen.waiting:
            name, rest = group.group_id.hex(), group.jobs_count - group.often_preempted
            yield _group(name, group.key, group.deadline_us, rest, service_s)
            if group.often_preempted:
                steady = _group(name + _OFF_SPOT, group.key, group.deadline_us, group.often_preempted, service_s)
                yield msgspec.structs.replace(steady, preemptions=self._policy.preemptions_max)

    # Publishing.

    def _publish(self, seen: Seen, plan: Plan, beyond: Mapping[str, BeyondShare]) -> None:
        """Keep what is new of it, and tell the dispatcher. Nothing new makes no generation."""
        self._planned_us = seen.now_us
        deadlines = {one.group_id: one.deadline_us for one in seen.waiting}
        fresh: dict[bytes, GroupPlan] = {}
        late_us: dict[bytes, int] = {}
        for decided in plan.decided:
            group_id = bytes.fromhex(decided.group_id.removesuffix(_OFF_SPOT))
            finish_us = round(decided.finish_s * _US) if decided.finish_s is not None else None
            if finish_us is not None and group_id in deadlines and finish_us > deadlines[group_id]:
                late_us[group_id] = max(finish_us, late_us.get(group_id, 0))
            if decided.group_id.endswith(_OFF_SPOT):
                continue  # dealing keeps it off spot, whatever the group's decision allows
            before = self._planned.get(group_id)
            if before is None or differs(before.plan, decided.plan):
                fresh[group_id] = decided.plan
        words = [self._word(one, desired) for one, desired in zip(seen.lanes, plan.desired, strict=True)]
        changed = [one for one in words if one.is_news(self._said.get(one.lane))]
        if fresh or changed or late_us.keys() != self._late or self._is_news(beyond):
            self._write(seen.now_us, fresh, changed, late_us, beyond)
            self._beyond = beyond
            self._wakeups.notify(Topic.DISPATCHER)
        keys = {group.group_id: group.key for group in seen.waiting}
        for group_id, decision in fresh.items():
            before = self._planned.get(group_id)
            self._planned[group_id] = _Planned(before.key if before else keys[group_id], decision)
        self._said |= {one.lane: one for one in changed}
        self._late = frozenset(late_us)
        self._forget(seen.now_us, deadlines.keys())

    def _is_news(self, beyond: Mapping[str, BeyondShare]) -> bool:
        before = self._beyond
        return (
            before is None
            or before.keys() != beyond.keys()
            or any(abs(one.due_by_us - before[name].due_by_us) > _DUE_TOLERANCE_US for name, one in beyond.items())
        )

    def _word(self, one: LaneSeen, desired: int) -> LanePlan:
        before = self._said.get(one.name)
        usable = 0 if one.trouble is not None else one.ready
        return LanePlan(
            lane=one.name,
            # Who starts and stops instances is not told to stop them for a fault that may pass.
            desired=before.desired if before and one.trouble is not None else desired,
            usable=min(usable, desired) if one.lane.supply is Supply.ELASTIC else usable,
            ready=one.ready,
            price_version=one.lane.price.version,
            speeds=dict(one.speeds),
            trouble=one.trouble,
        )

    def _write(
        self,
        now_us: int,
        fresh: Mapping[bytes, GroupPlan],
        changed: Sequence[LanePlan],
        late_us: Mapping[bytes, int],
        beyond: Mapping[str, BeyondShare],
    ) -> None:
        inputs = sha256(msgspec.msgpack.encode([sorted(fresh), list(changed)])).digest()

        def work(connection: Connection) -> int:
            alone(connection, "planner")
            generation = plans.current_plan(connection)[0] + 1
            plans.write_plan(connection, generation, fresh, inputs, now_us)
            plans.write_lane_plans(connection, changed, generation, now_us)
            plans.write_late_groups(connection, late_us, now_us)
            work_counts.write_share_limits(connection, list(beyond.values()), now_us)
            return generation

        self._generation = self._database.write(work, durable=False)
        _log.info("plan_made", generation=self._generation, groups=len(fresh), lanes=len(changed), late=len(late_us))

    def _forget(self, now_us: int, waiting: Collection[bytes]) -> None:
        """Groups that are past their deadline, and the oldest where there are too many."""
        others = [one for one in self._planned if one not in waiting]
        gone = {one for one in others if self._planned[one].key.deadline_us < now_us}
        gone.update(others[: max(0, len(others) - _PLANNED_MAX)])
        for group_id in gone:
            del self._planned[group_id]


def _group(name: str, key: GroupKey, deadline_us: int, jobs_count: int, service_s: Mapping[str, float]) -> Group:
    return Group(
        group_id=name,
        tenant=key.tenant_id,
        terms=terms_of(key),
        start_by_s=deadline_us / _US - service_s.get(key.model, 0.0),
        jobs=float(jobs_count),
    )


def _table(seen: Seen) -> LaneTable:
    return LaneTable([facts_of(one.lane, one.speeds) for one in seen.lanes])


def _service_s(lanes: Sequence[LaneSeen]) -> dict[str, float]:
    """By model, how long before its deadline a job should start: a second, and twice what the fastest lane takes."""
    found: dict[str, float] = {}
    for one in lanes:
        for model, speed in one.speeds.items():
            job_s = 1.0 + 2.0 * speed.job_s * one.lane.engine.concurrency
            found[model] = min(job_s, found.get(model, job_s))
    return found
