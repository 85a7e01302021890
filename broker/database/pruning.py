"""Statements that remove decisions which nobody will ask about, and shards' leftovers, so many at a time.

What a shard was cut by is kept for as long as the shard, so that each attempt can be explained. Of the rest a decision
goes a day after it was made, once a later one of its group is a day old too, or the group is a day past its deadline.
"""

from __future__ import annotations

import msgspec
from sqlalchemy import ColumnElement, Connection, delete, exists, func, or_, select

from broker.database.planning_tables import assignment, plan
from broker.database.tables import outbox, ready, shard, work_group
from broker.domain.shard import ShardState

__all__ = ["Pruned", "prune_decisions", "prune_outbox"]

_ASSIGNMENTS_MAX = 2_000
_PLANS_MAX = 1_000
_OUTBOX_MAX = 1_000


class Pruned(msgspec.Struct, frozen=True):
    """How far it looked, and how many rows it removed."""

    generation: int
    assignments: int
    plans: int


def prune_decisions(connection: Connection, after_generation: int, before_us: int) -> Pruned | None:
    """Look at the next generations that were made before then, about 2,000 decisions; None when there are none.

    The newest plan stays, whatever its age: the next one is counted from it.
    """
    until = _until(connection, after_generation, before_us)
    if until is None:
        return None
    assignments = connection.execute(
        delete(assignment).where(
            assignment.c.generation > after_generation,
            assignment.c.generation <= until,
            ~exists().where(shard.c.assignment_id == assignment.c.assignment_id),
            or_(_is_superseded(before_us), _is_of_a_past_group(before_us)),
        )
    ).rowcount
    newest = select(func.max(plan.alias().c.generation)).scalar_subquery()
    plans = connection.execute(
        delete(plan).where(
            plan.c.generation > after_generation,
            plan.c.generation <= until,
            plan.c.generation < newest,
            ~exists().where(assignment.c.generation == plan.c.generation),
        )
    ).rowcount
    return Pruned(until, assignments, plans)


def prune_outbox(connection: Connection) -> int:
    """Remove some rows of shards that are with nobody's bus any more: taken back, say, since their lane left.

    A relay removes what it finds of its own lanes; of a lane that left the catalog no relay reads.
    """
    is_sent = exists().where(shard.c.shard_id == outbox.c.shard_id, shard.c.state == ShardState.SENT)
    gone = select(outbox.c.shard_id).where(~is_sent).limit(_OUTBOX_MAX)
    return connection.execute(delete(outbox).where(outbox.c.shard_id.in_(gone))).rowcount


def _until(connection: Connection, after_generation: int, before_us: int) -> int | None:
    """The last generation of the next portion: of so many plans, and of so many decisions and the rest of its plan."""
    made = (
        select(plan.c.generation)
        .where(plan.c.generation > after_generation, plan.c.created_us < before_us)
        .order_by(plan.c.generation)
        .limit(_PLANS_MAX)
        .subquery()
    )
    last: int | None = connection.execute(select(func.max(made.c.generation))).scalar_one()
    decided: int | None = connection.execute(
        select(assignment.c.generation)
        .where(assignment.c.generation > after_generation)
        .order_by(assignment.c.generation)
        .offset(_ASSIGNMENTS_MAX)
        .limit(1)
    ).scalar_one_or_none()
    return last if last is None or decided is None else min(last, decided)


def _is_superseded(before_us: int) -> ColumnElement[bool]:
    later, its_plan = assignment.alias(), plan.alias()
    return exists().where(
        later.c.group_id == assignment.c.group_id,
        later.c.generation > assignment.c.generation,
        its_plan.c.generation == later.c.generation,
        its_plan.c.created_us < before_us,  # a dispatcher at work may still act on what a younger one replaced
    )


def _is_of_a_past_group(before_us: int) -> ColumnElement[bool]:
    past = exists().where(work_group.c.group_id == assignment.c.group_id, work_group.c.deadline_us < before_us)
    return past & ~exists().where(ready.c.group_id == assignment.c.group_id)
