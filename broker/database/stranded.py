"""Shards that a worker had fetched and not begun when it fell silent: some buses bring them to another only late."""

from __future__ import annotations

from sqlalchemy import Connection, and_, func, or_, select

from broker.database.tables import shard, worker
from broker.domain.presence import PRESENCE_SECONDS
from broker.domain.shard import ShardState

__all__ = ["stranded_shards"]

_PRESENCE_US = int(PRESENCE_SECONDS * 1_000_000)
_BETWEEN_WORDS_US = _PRESENCE_US // 3


def stranded_shards(connection: Connection, now_us: int, limit: int) -> list[bytes]:
    """Unclaimed shards of which the bus has delivered later ones, and which a silent worker of their lane may hold.

    A worker that lives may hold one just as well, behind what it runs: so being overtaken alone is no evidence.
    Where it was wrong to ask back, the first message is refused at the lease door, and nothing ran twice.
    """
    fallen = connection.execute(
        select(worker.c.lane, func.max(worker.c.seen_us))
        .where(worker.c.left_us.is_(None), worker.c.seen_us < now_us - _PRESENCE_US)
        .group_by(worker.c.lane)
    ).all()
    if not fallen:
        return []
    # It may have lived, and fetched, until the word that didn't come.
    before = or_(*(and_(shard.c.lane == lane, shard.c.created_us <= seen + _BETWEEN_WORDS_US) for lane, seen in fallen))
    waiting = connection.execute(
        select(shard.c.shard_id, shard.c.lane)
        .where(shard.c.closed_us.is_(None), shard.c.state == ShardState.SENT, before)
        .order_by(shard.c.shard_id)
        .limit(limit)
    ).all()
    if not waiting:
        return []
    newest: dict[str, bytes] = {}
    for lane in {lane for _, lane in waiting}:
        oldest = min(shard_id for shard_id, of_lane in waiting if of_lane == lane)
        newest[lane] = connection.execute(
            select(shard.c.shard_id)
            .where(shard.c.shard_id > oldest, shard.c.lane == lane, shard.c.claimed_us.is_not(None))
            .order_by(shard.c.shard_id.desc())
            .limit(1)
        ).scalar_one_or_none() or bytes(16)
    return [shard_id for shard_id, lane in waiting if shard_id < newest[lane]]
