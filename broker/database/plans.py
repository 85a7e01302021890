"""Statements on plans: the planner's decisions, kept with their reasons, and its word on each lane."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Select, delete, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from broker.database.desired_changes import keep_changes
from broker.database.planning_tables import assignment, lane_plan, late_group, plan
from broker.database.tables import batch, job, ready, work_group
from broker.domain.desired import LaneDesired
from broker.domain.ids import new_id
from broker.rules.decisions import Candidate, GroupPlan, Removed
from broker.rules.placement.learning import Speed

__all__ = [
    "Assignment",
    "LanePlan",
    "current_plan",
    "find",
    "lane_plans",
    "late_batch_us",
    "late_job_us",
    "load_later",
    "load_waiting",
    "newest",
    "of_job",
    "write_lane_plans",
    "write_late_groups",
    "write_plan",
]


class Assignment(msgspec.Struct, frozen=True):
    """The decision for one group, as it was recorded."""

    assignment_id: bytes
    generation: int
    group_id: bytes
    tenant_id: str
    model: str
    plan: GroupPlan


class LanePlan(msgspec.Struct, frozen=True, kw_only=True):
    """The planner's word on a lane, in instances: wanted, to be given work, and there.

    `speeds` by model, as they were learned; `trouble` says why it gets no work.
    """

    lane: str
    desired: int
    usable: int
    ready: int
    speeds: dict[str, Speed]
    price_version: str = ""
    trouble: str | None = None

    def is_news(self, before: LanePlan | None) -> bool:
        """Whether it says something else than before.

        Speeds count when they moved by more than a tenth, and when the first was seen where one was believed.
        """
        if before is None:
            return True
        if msgspec.structs.replace(self, speeds={}) != msgspec.structs.replace(before, speeds={}):
            return True
        return any(
            abs(speed.job_s - before.speeds[model].job_s) > _SPEED_TOLERANCE * before.speeds[model].job_s
            or (speed.jobs > 0) != (before.speeds[model].jobs > 0)
            for model, speed in self.speeds.items()
        )


_SPEED_TOLERANCE = 0.1
_CURRENT_PLAN = select(plan.c.generation, plan.c.plan_id).order_by(plan.c.generation.desc()).limit(1)


def current_plan(connection: Connection) -> tuple[int, bytes]:
    """The newest plan's generation and id; 0 and nothing before the first."""
    row = connection.execute(_CURRENT_PLAN).one_or_none()
    return (row.generation, row.plan_id) if row else (0, b"")


def write_plan(
    connection: Connection, generation: int, plans: Mapping[bytes, GroupPlan], inputs_digest: bytes, now_us: int
) -> None:
    """Record a generation and what it decides anew. A generation already there is an IntegrityError."""
    connection.execute(
        insert(plan).values(generation=generation, plan_id=new_id(), created_us=now_us, inputs_digest=inputs_digest)
    )
    if plans:
        connection.execute(
            insert(assignment),
            [
                {
                    "assignment_id": new_id(),
                    "generation": generation,
                    "group_id": group_id,
                    "candidates": msgspec.json.encode(decision.candidates).decode(),
                    "removed": msgspec.json.encode(decision.removed).decode(),
                }
                for group_id, decision in plans.items()
            ],
        )


def load_later(connection: Connection, generation: int) -> dict[bytes, Assignment]:
    """What was decided since that generation, by group; the newest for each."""
    rows = connection.execute(_with_key().where(assignment.c.generation > generation).order_by(assignment.c.generation))
    return {row.group_id: _assignment(row) for row in rows}


def load_waiting(connection: Connection) -> dict[bytes, Assignment]:
    """What holds for each group that waits."""
    waiting = select(ready.c.group_id).distinct()
    rows = connection.execute(_with_key().where(assignment.c.group_id.in_(waiting)).order_by(assignment.c.generation))
    newest = {row.group_id: row for row in rows}
    return {group_id: _assignment(row) for group_id, row in newest.items()}


def newest(connection: Connection, group_ids: Collection[bytes]) -> dict[bytes, Assignment]:
    """What holds for each of these groups, where anything does."""
    rows = connection.execute(
        _with_key().where(assignment.c.group_id.in_(list(group_ids))).order_by(assignment.c.generation)
    )
    found = {row.group_id: row for row in rows}
    return {group_id: _assignment(row) for group_id, row in found.items()}


def of_job(connection: Connection, tenant_id: str | None, job_id: bytes) -> GroupPlan | None:
    """What holds for this job's group; None where nothing does yet. Any tenant's job where `tenant_id` is None."""
    theirs = [] if tenant_id is None else [job.c.tenant_id == tenant_id]
    query = _with_key().join(job, job.c.group_id == assignment.c.group_id).where(job.c.job_id == job_id, *theirs)
    row = connection.execute(query.order_by(assignment.c.generation.desc()).limit(1)).one_or_none()
    return _assignment(row).plan if row else None


def find(connection: Connection, assignment_id: bytes) -> Assignment | None:
    """The assignment of this id."""
    row = connection.execute(_with_key().where(assignment.c.assignment_id == assignment_id)).one_or_none()
    return _assignment(row) if row else None


def write_lane_plans(connection: Connection, lanes: Sequence[LanePlan], generation: int, now_us: int) -> None:
    """The planner's newest word on these lanes; where they should hold another number, that is kept to be told."""
    keep_changes(connection, [LaneDesired(one.lane, one.desired, one.ready, generation, now_us) for one in lanes])
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    for one in lanes:
        values = {
            "generation": generation,
            "desired": one.desired,
            "usable": one.usable,
            "ready": one.ready,
            "price_version": one.price_version,
            "speeds": msgspec.json.encode(one.speeds).decode(),
            "trouble": one.trouble,
            "planned_us": now_us,
        }
        connection.execute(
            kind.insert(lane_plan)
            .values(lane=one.lane, **values)
            .on_conflict_do_update(index_elements=[lane_plan.c.lane], set_=values)
        )


def lane_plans(connection: Connection) -> dict[str, LanePlan]:
    """The planner's newest word on each lane, by name."""
    return {
        row.lane: LanePlan(
            lane=row.lane,
            desired=row.desired,
            usable=row.usable,
            ready=row.ready,
            price_version=row.price_version,
            speeds=msgspec.json.decode(row.speeds, type=dict[str, Speed]),
            trouble=row.trouble,
        )
        for row in connection.execute(select(lane_plan))
    }


def write_late_groups(connection: Connection, late_us: Mapping[bytes, int], now_us: int) -> None:
    """These groups, and no others, are expected to end after their deadline, each at its time."""
    connection.execute(delete(late_group))
    if late_us:
        rows = [{"group_id": one, "finish_us": us, "noticed_us": now_us} for one, us in late_us.items()]
        connection.execute(insert(late_group), rows)


def late_job_us(connection: Connection, tenant_id: str, job_id: bytes) -> int | None:
    """When this job of the tenant is expected to end, if that is after its deadline."""
    query = select(late_group.c.finish_us).join(job, job.c.group_id == late_group.c.group_id)
    theirs = (job.c.job_id == job_id, job.c.tenant_id == tenant_id)
    found = connection.execute(query.where(*theirs, late_group.c.finish_us > job.c.deadline_us))
    finish_us: int | None = found.scalar_one_or_none()
    return finish_us


def late_batch_us(connection: Connection, tenant_id: str, batch_id: bytes) -> int | None:
    """When the last waiting job of this batch of the tenant is expected to end, if that is after its deadline."""
    query = (
        select(func.max(late_group.c.finish_us))
        .join(ready, ready.c.group_id == late_group.c.group_id)
        .join(batch, batch.c.batch_id == ready.c.batch_id)
    )
    theirs = (batch.c.batch_id == batch_id, batch.c.tenant_id == tenant_id)
    found = connection.execute(query.where(*theirs, late_group.c.finish_us > ready.c.deadline_us))
    finish_us: int | None = found.scalar_one()
    return finish_us


def _with_key() -> Select[Any]:
    columns = (assignment, work_group.c.tenant_id, work_group.c.model)
    return select(*columns).join(work_group, work_group.c.group_id == assignment.c.group_id)


def _assignment(row: Row[Any]) -> Assignment:
    candidates = msgspec.json.decode(row.candidates, type=tuple[Candidate, ...])
    removed = msgspec.json.decode(row.removed, type=tuple[Removed, ...])
    plan = GroupPlan(candidates, removed)
    return Assignment(row.assignment_id, row.generation, row.group_id, row.tenant_id, row.model, plan)
