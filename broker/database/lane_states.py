"""Statements on lanes that someone has paused or is draining."""

from __future__ import annotations

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from broker.database.tables import lane_state
from broker.domain.lane import LaneState

__all__ = ["held_lanes", "set_state"]


_HELD = select(lane_state.c.lane, lane_state.c.state)


def held_lanes(connection: Connection) -> dict[str, LaneState]:
    """The lanes that get no new shards; all others are open."""
    return {lane: LaneState(state) for lane, state in connection.execute(_HELD)}


def set_state(connection: Connection, lane: str, state: LaneState, now_us: int) -> None:
    """From now on the lane is in this state, also after a restart."""
    if state is LaneState.OPEN:
        connection.execute(delete(lane_state).where(lane_state.c.lane == lane))
        return
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    values = {"state": state, "changed_us": now_us}
    connection.execute(
        kind.insert(lane_state)
        .values(lane=lane, **values)
        .on_conflict_do_update(index_elements=[lane_state.c.lane], set_=values)
    )
