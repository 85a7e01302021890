"""Statements on plans: the planner's decisions, kept with their reasons."""

from __future__ import annotations

import msgspec
from sqlalchemy import Connection, func, insert, select

from broker.database.tables import assignment, plan
from broker.domain.ids import new_id
from broker.rules.planning import Candidate, GroupPlan, Removed

__all__ = ["Assignment", "current_generation", "find", "load_generation", "write_plan"]


class Assignment(msgspec.Struct, frozen=True):
    """The decision for one group, as it was recorded."""

    assignment_id: bytes
    generation: int
    group_id: bytes
    plan: GroupPlan


def current_generation(connection: Connection) -> int:
    """The newest plan's generation; 0 before the first."""
    return int(connection.execute(select(func.coalesce(func.max(plan.c.generation), 0))).scalar_one())


def write_plan(
    connection: Connection, generation: int, plans: dict[bytes, GroupPlan], inputs_digest: bytes, now_us: int
) -> list[Assignment]:
    """Record a generation and its assignments, one per group. A generation already there is an IntegrityError."""
    connection.execute(
        insert(plan).values(generation=generation, plan_id=new_id(), created_us=now_us, inputs_digest=inputs_digest)
    )
    made = [Assignment(new_id(), generation, group_id, decision) for group_id, decision in plans.items()]
    if made:
        connection.execute(
            insert(assignment),
            [
                {
                    "assignment_id": one.assignment_id,
                    "generation": generation,
                    "group_id": one.group_id,
                    "candidates": msgspec.json.encode(one.plan.candidates).decode(),
                    "removed": msgspec.json.encode(one.plan.removed).decode(),
                }
                for one in made
            ],
        )
    return made


def find(connection: Connection, assignment_id: bytes) -> Assignment | None:
    """The assignment of this id."""
    row = connection.execute(select(assignment).where(assignment.c.assignment_id == assignment_id)).one_or_none()
    if row is None:
        return None
    candidates = msgspec.json.decode(row.candidates, type=tuple[Candidate, ...])
    removed = msgspec.json.decode(row.removed, type=tuple[Removed, ...])
    return Assignment(row.assignment_id, row.generation, row.group_id, GroupPlan(candidates, removed))


def load_generation(connection: Connection, generation: int) -> dict[bytes, Assignment]:
    """The assignments of a generation by group."""
    rows = connection.execute(select(assignment.c.assignment_id).where(assignment.c.generation == generation)).scalars()
    found = (find(connection, assignment_id) for assignment_id in list(rows))
    return {one.group_id: one for one in found if one is not None}
