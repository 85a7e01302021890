"""Statements on what lanes have before them, for the planner: a lane that has work and brings nothing is in trouble."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
from sqlalchemy import Connection, func, select

from broker.database.shards import OPEN_STATES
from broker.database.tables import shard

__all__ = ["Capacity", "OpenWork", "open_work"]

Capacity = Callable[[Connection], Mapping[str, int]]
"""How many shards may run at once on each lane, by its live workers; a lane that isn't named has none."""


class OpenWork(msgspec.Struct, frozen=True):
    """How many shards a lane has, sent or running; since when the oldest; and when it last claimed one of them."""

    shards: int
    oldest_us: int
    claimed_us: int


_OPEN_WORK = (
    select(shard.c.lane, func.count(), func.min(shard.c.created_us), func.max(shard.c.claimed_us))
    .where(shard.c.closed_us.is_(None), shard.c.state.in_(OPEN_STATES))
    .group_by(shard.c.lane)
)


def open_work(connection: Connection) -> dict[str, OpenWork]:
    """What each lane has that is not done, by name."""
    return {
        lane: OpenWork(int(count), int(oldest_us), int(claimed_us or 0))
        for lane, count, oldest_us, claimed_us in connection.execute(_OPEN_WORK)
    }
