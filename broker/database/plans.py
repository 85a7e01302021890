"""Statements on plans: the planner's decisions, kept with their reasons."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Select, insert, select

from broker.database.tables import assignment, plan, work_group
from broker.domain.ids import new_id
from broker.rules.planning import Candidate, GroupPlan, Removed

__all__ = ["Assignment", "current_plan", "find", "load_generation", "write_plan"]


class Assignment(msgspec.Struct, frozen=True):
    """The decision for one group, as it was recorded."""

    assignment_id: bytes
    generation: int
    group_id: bytes
    tenant_id: str
    plan: GroupPlan


_CURRENT_PLAN = select(plan.c.generation, plan.c.plan_id).order_by(plan.c.generation.desc()).limit(1)


def current_plan(connection: Connection) -> tuple[int, bytes]:
    """The newest plan's generation and id; 0 and nothing before the first."""
    row = connection.execute(_CURRENT_PLAN).one_or_none()
    return (row.generation, row.plan_id) if row else (0, b"")


def write_plan(
    connection: Connection, generation: int, plans: dict[bytes, GroupPlan], inputs_digest: bytes, now_us: int
) -> None:
    """Record a generation and its assignments, one per group. A generation already there is an IntegrityError."""
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


def load_generation(connection: Connection, generation: int) -> dict[bytes, Assignment]:
    """The assignments of a generation by group."""
    rows = connection.execute(_with_tenant().where(assignment.c.generation == generation))
    return {row.group_id: _assignment(row) for row in rows}


def find(connection: Connection, assignment_id: bytes) -> Assignment | None:
    """The assignment of this id."""
    row = connection.execute(_with_tenant().where(assignment.c.assignment_id == assignment_id)).one_or_none()
    return _assignment(row) if row else None


def _with_tenant() -> Select[Any]:
    return select(assignment, work_group.c.tenant_id).join(work_group, work_group.c.group_id == assignment.c.group_id)


def _assignment(row: Row[Any]) -> Assignment:
    candidates = msgspec.json.decode(row.candidates, type=tuple[Candidate, ...])
    removed = msgspec.json.decode(row.removed, type=tuple[Removed, ...])
    return Assignment(row.assignment_id, row.generation, row.group_id, row.tenant_id, GroupPlan(candidates, removed))
