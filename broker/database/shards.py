"""Statements on shards: the only rows that change on the hot path, and the fence around each piece of work."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import msgspec
from sqlalchemy import BigInteger, Connection, TextualSelect, bindparam, case, delete, false, func, select, text, update

from broker.database.cancelling import cancelled_in_shard
from broker.database.connection import bulk_insert, bulk_update
from broker.database.tables import outbox, shard, shard_span, work_group
from broker.database.types import Id
from broker.domain.ids import id_at
from broker.domain.shard import Bitmap, ShardSpan, ShardState

__all__ = [
    "Holding",
    "OpenShard",
    "OutboxRow",
    "ShardRecord",
    "claim",
    "close",
    "forget_sent",
    "held_nano_usd",
    "held_shards",
    "is_silent",
    "load",
    "open_shards",
    "outbox_rows",
    "renew",
    "save_recorded",
    "silent_shards",
    "unclosed_taken_back",
    "unended",
    "write_shards",
]

OPEN_STATES = (ShardState.SENT, ShardState.RUNNING)


class ShardRecord(msgspec.Struct, kw_only=True):
    """A shard with its spans and the group that its jobs are of."""

    shard_id: bytes
    tenant_id: str
    group_id: bytes
    batch_id: bytes | None
    lane: str
    assignment_id: bytes | None
    reason: str
    jobs_count: int
    created_us: int
    claim_by_us: int
    hold_nano_usd: int
    spans: list[ShardSpan]
    endpoint: str = ""
    model: str = ""
    constraints: str = "{}"
    state: ShardState = ShardState.SENT
    claimed_us: int | None = None
    lease_until_us: int | None = None
    worker_id: str | None = None
    recorded: Bitmap = msgspec.field(default_factory=Bitmap)
    running: bytes | None = None
    closed_us: int | None = None
    beside: bool = False

    def span_at(self, index: int) -> ShardSpan:
        """The span that holds this index."""
        for span in self.spans:
            if index < span.first_index + span.jobs_count:
                return span
        raise IndexError(f"shard {self.shard_id.hex()} has no index {index}")

    def job_id_at(self, index: int) -> bytes:
        """The job at this index."""
        span = self.span_at(index)
        return id_at(span.first_job_id, index - span.first_index)


class OutboxRow(msgspec.Struct, frozen=True):
    """A shard that still has to be published."""

    shard_id: bytes
    lane: str


class OpenShard(msgspec.Struct, frozen=True):
    """A shard that a lane has, and how many of its jobs haven't ended; `alone`: it is of one suspect."""

    lane: str
    tenant_id: str
    beside: bool
    jobs_count: int
    alone: bool


def write_shards(connection: Connection, records: Sequence[ShardRecord]) -> None:
    """Write new shards, their spans and their outbox rows."""
    bulk_insert(
        connection,
        shard,
        [
            (
                record.shard_id,
                record.tenant_id,
                record.group_id,
                record.batch_id,
                record.lane,
                record.assignment_id,
                record.reason,
                record.jobs_count,
                record.state,
                record.created_us,
                record.claim_by_us,
                None,
                None,
                None,
                b"",
                None,
                record.hold_nano_usd,
                None,
                record.beside,
            )
            for record in records
        ],
    )
    bulk_insert(
        connection,
        shard_span,
        [(record.shard_id, *msgspec.structs.astuple(span)) for record in records for span in record.spans],
    )
    bulk_insert(connection, outbox, [(record.shard_id, record.lane) for record in records])


_OUTBOX = (
    select(outbox.c.shard_id, outbox.c.lane)
    .where(outbox.c.lane.in_(bindparam("lanes", expanding=True)))
    .order_by(outbox.c.shard_id)
    .limit(bindparam("rows_max"))
)
_FORGET = delete(outbox).where(outbox.c.shard_id.in_(bindparam("shard_ids", expanding=True)))


def outbox_rows(connection: Connection, lanes: Sequence[str], limit: int) -> list[OutboxRow]:
    """The oldest shards that are still to be published to these lanes."""
    rows = connection.execute(_OUTBOX, {"lanes": list(lanes), "rows_max": limit})
    return [OutboxRow(shard_id, lane) for shard_id, lane in rows]


def forget_sent(connection: Connection, shard_ids: Sequence[bytes]) -> None:
    """The bus has confirmed these."""
    connection.execute(_FORGET, {"shard_ids": list(shard_ids)})


_LOAD = (
    select(shard, work_group.c.endpoint, work_group.c.model, work_group.c.constraints)
    .join(work_group, work_group.c.group_id == shard.c.group_id)
    .where(shard.c.shard_id.in_(bindparam("shard_ids", expanding=True)))
    .order_by(shard.c.shard_id)
)
_LOAD_LOCKED = _LOAD.with_for_update(of=shard)
_LOAD_SPANS = (
    select(shard_span)
    .where(shard_span.c.shard_id.in_(bindparam("shard_ids", expanding=True)))
    .order_by(shard_span.c.shard_id, shard_span.c.first_index)
)


def load(connection: Connection, shard_ids: Sequence[bytes], *, lock: bool = False) -> dict[bytes, ShardRecord]:
    """These shards by id; with `lock`, locked against other writers, in id order so that none waits in a circle."""
    asked = {"shard_ids": list(shard_ids)}
    found: dict[bytes, ShardRecord] = {}
    for row in connection.execute(_LOAD_LOCKED if lock else _LOAD, asked):
        fields = dict(row._mapping)  # noqa: SLF001 (SQLAlchemy's public name for it)
        fields["recorded"] = Bitmap(fields["recorded"])
        fields["state"] = ShardState(fields["state"])
        found[row.shard_id] = ShardRecord(spans=[], **fields)
    for shard_id, *span in connection.execute(_LOAD_SPANS, asked):
        if shard_id in found:
            found[shard_id].spans.append(ShardSpan(*span))
    return found


class Holding(msgspec.Struct, frozen=True):
    """A shard is this worker's; `cancel_requested` says that its batch is to be cancelled.

    `cancelled_jobs`: the bitmap of the indices whose jobs are, each for itself.
    """

    cancel_requested: bool
    cancelled_jobs: bytes = b""


# As text, so that it reads as it runs: SQLAlchemy leaves out the table's name in what SQLite returns, where
# `batch.batch_id = batch_id` is true of every batch.
_HINTS = """
RETURNING
    shard_id,
    -- when its whole batch was to be cancelled, if it is
    (SELECT batch.cancel_requested_us FROM batch WHERE batch.batch_id = shard.batch_id) AS batch_cancelled_us,
    -- whether any single job is to be cancelled; seldom, so which ones is asked only then
    (SELECT cancel_request.job_id FROM cancel_request LIMIT 1) AS any_cancelled_job
"""
_CLAIM_TEXT = f"""
UPDATE shard SET
    state = 'running',
    worker_id = :to_worker,
    claimed_us = :now_us,
    lease_until_us = :until_us
WHERE shard_id {{which}}
    -- a lane's worker gets its lane's shards alone
    AND lane = :of_lane
    -- free, or this very worker's, which asks again when the answer got lost
    AND (state = 'sent' OR (state = 'running' AND worker_id = :to_worker))
{_HINTS}"""  # noqa: S608 (our own words alone)
_RENEW_TEXT = f"""
UPDATE shard SET
    lease_until_us = :until_us,
    running = :now_running
WHERE shard_id = :of_shard
    AND lane = :of_lane
    AND worker_id = :of_worker
    -- not one that was taken back, handed back or done meanwhile
    AND state = 'running'
{_HINTS}"""  # noqa: S608 (our own words alone)
_CLAIM_ONE = (
    text(_CLAIM_TEXT.format(which="= :of_shard"))
    .bindparams(bindparam("of_shard", type_=Id))
    .columns(shard_id=Id, batch_cancelled_us=BigInteger, any_cancelled_job=Id)
)
"""Most claims are of one, and a list of any length is put into the statement anew each time."""

_CLAIM = (
    text(_CLAIM_TEXT.format(which="IN :of_shards"))
    .bindparams(bindparam("of_shards", expanding=True, type_=Id))
    .columns(shard_id=Id, batch_cancelled_us=BigInteger, any_cancelled_job=Id)
)
_RENEW = (
    text(_RENEW_TEXT)
    .bindparams(bindparam("of_shard", type_=Id))
    .columns(shard_id=Id, batch_cancelled_us=BigInteger, any_cancelled_job=Id)
)


def claim(
    connection: Connection, shard_ids: Sequence[bytes], lane: str, worker_id: str, now_us: int, lease_until_us: int
) -> dict[bytes, Holding]:
    """Give this worker those of the shards that are still free. A shard id is claimed once; this is the fence."""
    values = {"of_lane": lane, "to_worker": worker_id, "now_us": now_us, "until_us": lease_until_us}
    if len(shard_ids) == 1:
        return _holdings(connection, _CLAIM_ONE, {"of_shard": shard_ids[0], **values})
    return _holdings(connection, _CLAIM, {"of_shards": sorted(shard_ids), **values})


def renew(
    connection: Connection, shard_id: bytes, lane: str, worker_id: str, running: bytes, lease_until_us: int
) -> Holding | None:
    """Extend the worker's lease, if it still has it."""
    values = {"of_lane": lane, "of_worker": worker_id, "now_running": running, "until_us": lease_until_us}
    return _holdings(connection, _RENEW, {"of_shard": shard_id, **values}).get(shard_id)


def _holdings(connection: Connection, statement: TextualSelect, values: dict[str, Any]) -> dict[bytes, Holding]:
    return {
        row.shard_id: Holding(
            row.batch_cancelled_us is not None,
            cancelled_in_shard(connection, row.shard_id) if row.any_cancelled_job is not None else b"",
        )
        for row in connection.execute(statement, values).all()
    }


def save_recorded(connection: Connection, records: Iterable[ShardRecord]) -> None:
    """Keep which indices are in the ledger, and the states that this leads to."""
    bulk_update(
        connection,
        shard.c.shard_id,
        [shard.c.recorded, shard.c.state, shard.c.closed_us],
        [(record.shard_id, record.recorded.to_bytes(), record.state, record.closed_us) for record in records],
    )


def close(connection: Connection, shard_id: bytes, state: ShardState, closed_us: int | None) -> None:
    """Move a shard on; with `closed_us`, for good."""
    connection.execute(update(shard).where(shard.c.shard_id == shard_id).values(state=state, closed_us=closed_us))


_OPEN_SHARDS = (
    select(shard.c.lane, func.count())
    .where(shard.c.closed_us.is_(None), shard.c.state.in_(OPEN_STATES))
    .group_by(shard.c.lane)
)


def open_shards(connection: Connection) -> dict[str, int]:
    """How many shards each lane has, sent or running."""
    return {lane: count for lane, count in connection.execute(_OPEN_SHARDS)}  # noqa: C416 (dict() can't take rows)


_IS_ALONE = select(shard_span.c.alone).where(shard_span.c.shard_id == shard.c.shard_id).limit(1).scalar_subquery()
_LANE_WORK = (
    select(
        shard.c.lane,
        shard.c.tenant_id,
        shard.c.beside,
        shard.c.jobs_count,
        shard.c.recorded,
        # a suspect's shard is of one job
        case((shard.c.jobs_count == 1, _IS_ALONE), else_=false()),
    )
    .where(shard.c.closed_us.is_(None), shard.c.state.in_(OPEN_STATES))
    .order_by(shard.c.claimed_us.is_(None), shard.c.claimed_us, shard.c.created_us, shard.c.shard_id)
)


def unended(connection: Connection) -> list[OpenShard]:
    """Every shard that is sent or running, in the order in which they were claimed: what its lane still has of it."""
    return [
        OpenShard(lane, tenant_id, bool(beside), jobs_count - len(Bitmap(recorded)), bool(alone))
        for lane, tenant_id, beside, jobs_count, recorded, alone in connection.execute(_LANE_WORK)
    ]


_HELD = (
    select(shard.c.batch_id, func.sum(shard.c.hold_nano_usd))
    .where(
        shard.c.closed_us.is_(None),
        shard.c.state.in_(OPEN_STATES),
        shard.c.batch_id.in_(bindparam("of_batches", expanding=True)),
    )
    .group_by(shard.c.batch_id)
)


def held_nano_usd(connection: Connection, batch_ids: Collection[bytes]) -> dict[bytes, int]:
    """What is set aside for shards that are sent or running, for each of these batches that has such."""
    rows = connection.execute(_HELD, {"of_batches": list(batch_ids)})
    return {batch_id: int(held) for batch_id, held in rows}


def held_shards(connection: Connection) -> list[bytes]:
    """Every shard that is sent or running."""
    query = select(shard.c.shard_id).where(shard.c.closed_us.is_(None), shard.c.state.in_(OPEN_STATES))
    return list(connection.execute(query.order_by(shard.c.shard_id)).scalars())


def is_silent(record: ShardRecord, now_us: int, lease_us: int, manned: Sequence[str] | None) -> bool:
    """Whether this shard is one that `silent_shards` looks for."""
    if record.closed_us is not None or record.state not in OPEN_STATES:
        return False
    if record.state is ShardState.SENT:
        unmanned = manned is not None and record.lane not in manned
        return unmanned or record.claim_by_us < now_us or record.created_us > now_us
    until_us = record.lease_until_us or 0
    return until_us < now_us or until_us > now_us + 2 * lease_us


def silent_shards(
    connection: Connection, now_us: int, lease_us: int, manned: Sequence[str] | None, limit: int
) -> list[bytes]:
    """Shards that nobody claimed by `claim_by_us`, or whose lease has run out.

    Also those written, or leased, at a time that is still to come: the clock was set back, and nobody has
    renewed since. And where the lanes with workers are known, those that lie before a lane without any.
    """
    due = case((shard.c.state == ShardState.SENT, shard.c.claim_by_us), else_=shard.c.lease_until_us) < now_us
    ahead = case(
        (shard.c.state == ShardState.SENT, shard.c.created_us > now_us),
        else_=shard.c.lease_until_us > now_us + 2 * lease_us,
    )
    unmanned = false() if manned is None else (shard.c.state == ShardState.SENT) & shard.c.lane.not_in(list(manned))
    return list(
        connection.execute(
            select(shard.c.shard_id)
            .where(shard.c.closed_us.is_(None), shard.c.state.in_(OPEN_STATES), due | ahead | unmanned)
            .order_by(shard.c.shard_id)
            .limit(limit)
        ).scalars()
    )


def unclosed_taken_back(connection: Connection, before_us: int, limit: int) -> list[bytes]:
    """Shards taken back whose lease ended before `before_us`, and whose late results no longer come."""
    return list(
        connection.execute(
            select(shard.c.shard_id)
            .where(
                shard.c.closed_us.is_(None),
                shard.c.state == ShardState.TAKEN_BACK,
                func.coalesce(shard.c.lease_until_us, shard.c.claim_by_us) < before_us,
            )
            .order_by(shard.c.shard_id)
            .limit(limit)
        ).scalars()
    )
