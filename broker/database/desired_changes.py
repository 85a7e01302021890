"""Statements on what lanes should hold: a change is kept until it was told, and only the newest for each lane."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, bindparam, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from broker.database.planning_tables import lane_plan
from broker.database.tables import desired_change
from broker.domain.desired import LaneDesired

__all__ = ["forget_told", "keep_changes", "untold_changes"]

_FORGET = delete(desired_change).where(
    desired_change.c.lane == bindparam("of_lane"), desired_change.c.generation <= bindparam("told_generation")
)


def keep_changes(connection: Connection, words: Sequence[LaneDesired]) -> None:
    """Of these, keep what is another number than the lane's plan says so far. Call it before the plan is written."""
    lanes = [word.lane for word in words]
    rows = connection.execute(select(lane_plan.c.lane, lane_plan.c.desired).where(lane_plan.c.lane.in_(lanes)))
    before = {row.lane: row.desired for row in rows}
    changed = [word for word in words if before.get(word.lane) != word.desired]
    if not changed:
        return
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    fresh = kind.insert(desired_change).values(
        [
            {
                "lane": word.lane,
                "desired": word.desired,
                "ready": word.ready,
                "generation": word.generation,
                "changed_us": word.at_us,
            }
            for word in changed
        ]
    )
    newer = {name: fresh.excluded[name] for name in ("desired", "ready", "generation", "changed_us")}
    connection.execute(fresh.on_conflict_do_update(index_elements=[desired_change.c.lane], set_=newer))


def untold_changes(connection: Connection) -> list[LaneDesired]:
    """What is still to be told; one for a lane at most."""
    rows = connection.execute(select(desired_change).order_by(desired_change.c.generation, desired_change.c.lane))
    return [LaneDesired(row.lane, row.desired, row.ready, row.generation, row.changed_us) for row in rows]


def forget_told(connection: Connection, told: Sequence[LaneDesired]) -> None:
    """These were told; what changed since stays."""
    if told:
        rows = [{"of_lane": one.lane, "told_generation": one.generation} for one in told]
        connection.execute(_FORGET, rows)
