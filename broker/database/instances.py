"""Statements on instances: what their workers say, who fell silent, and what there is on each lane."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection, Row, bindparam, select, text, update

from broker.database.tables import instance
from broker.database.types import Id
from broker.database.workers import PRESENCE
from broker.domain.ids import new_id
from broker.domain.instance import InstanceState
from broker.domain.presence import PRESENCE_SECONDS, RESOURCE_ID_CHARS_MAX, WorkerPresence

__all__ = [
    "InstanceRecord",
    "find_instances",
    "note_presence",
    "notice_lost",
]

_PRESENCE_US = int(PRESENCE_SECONDS * 1_000_000)
_LIVE = [state for state in InstanceState if state.is_live]


class InstanceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An instance as it stood when it was read; times in Unix microseconds, None where it didn't come to that."""

    instance_id: bytes
    worker_id: str
    lane: str
    resource_id: str
    slots: int
    state: InstanceState
    started_us: int
    ready_us: int | None
    draining_us: int | None
    stopped_us: int | None
    last_seen_us: int


_KNOWN = """
INSERT INTO instance (
    instance_id, worker_id, lane, resource_id, slots, state,
    started_us, ready_us, draining_us, stopped_us, last_seen_us
) VALUES (
    :instance_id, :worker_id, :lane, :resource_id, :slots, :state,
    :now_us, :ready_us, :draining_us, :stopped_us, :now_us
)
ON CONFLICT (worker_id) DO UPDATE SET
    -- the most that it ever said: it says 0 while it starts
    slots = CASE WHEN excluded.slots > instance.slots THEN excluded.slots ELSE instance.slots END,
    state = CASE
        -- this is its last word
        WHEN excluded.stopped_us IS NOT NULL THEN 'stopped'
        -- it left, now or before: it doesn't come back
        WHEN instance.draining_us IS NOT NULL OR excluded.draining_us IS NOT NULL THEN 'draining'
        -- it was ready, now or before; one that was lost lives again
        WHEN instance.ready_us IS NOT NULL OR excluded.ready_us IS NOT NULL THEN 'running'
        ELSE 'starting'
    END,
    -- the first word of each kind says when it came to that
    ready_us = coalesce(instance.ready_us, excluded.ready_us),
    draining_us = coalesce(instance.draining_us, excluded.draining_us),
    stopped_us = excluded.stopped_us,
    last_seen_us = excluded.last_seen_us
-- a stopped instance has said its last word: what was under way then changes nothing
WHERE instance.stopped_us IS NULL
"""
_NOTE_INSTANCE = text(_KNOWN).bindparams(bindparam("instance_id", type_=Id))
_NOTE_PRESENCE = text(PRESENCE)
_NOTE_BOTH = text(f"WITH present AS ({PRESENCE}) {_KNOWN}").bindparams(bindparam("instance_id", type_=Id))
"""One round trip; SQLite, which has none to save, takes no INSERT inside WITH."""


def note_presence(connection: Connection, said: WorkerPresence, now_us: int) -> None:
    """A worker said where it stands: it is counted on, or no longer, and its instance is known. One round trip.

    Words may come twice or out of order: the furthest of them holds. A lost instance lives again with its next word; a
    stopped one has said its last.
    """
    values = {
        "instance_id": new_id(),
        "worker_id": said.worker_id,
        "lane": said.lane,
        "resource_id": (said.resource_id or said.worker_id)[:RESOURCE_ID_CHARS_MAX],
        "slots": said.slots,
        "state": _state_said(said),
        "now_us": now_us,
        "ready_us": None if said.is_starting or said.leaving else now_us,
        "draining_us": now_us if said.leaving else None,
        "stopped_us": now_us if said.gone else None,
    }
    if said.is_starting:
        connection.execute(_NOTE_INSTANCE, values)
    elif connection.dialect.name == "postgresql":
        connection.execute(_NOTE_BOTH, values)
    else:
        connection.execute(_NOTE_INSTANCE, values)
        connection.execute(_NOTE_PRESENCE, values)


def notice_lost(connection: Connection, now_us: int) -> int:
    """Instances of which nothing was heard for longer than a presence lasts are lost; how many that were."""
    silent = instance.c.last_seen_us < now_us - _PRESENCE_US
    found = connection.execute(
        update(instance)
        .where(instance.c.stopped_us.is_(None), instance.c.state.in_(_LIVE), silent)
        .values(state=InstanceState.LOST)
    )
    return found.rowcount


def find_instances(
    connection: Connection, now_us: int, lane: str | None, *, ended: bool, limit: int
) -> list[InstanceRecord]:
    """The newest so many, oldest first: those that live, and with `ended` also those that stopped or were lost.

    One that fell silent is told as lost, whether or not somebody has noted it yet.
    """
    query = select(instance).order_by(instance.c.started_us.desc(), instance.c.instance_id.desc()).limit(limit)
    if lane is not None:
        query = query.where(instance.c.lane == lane)
    if not ended:
        query = query.where(
            instance.c.stopped_us.is_(None),
            instance.c.state.in_(_LIVE),
            instance.c.last_seen_us >= now_us - _PRESENCE_US,
        )
    return [_record(row, now_us) for row in reversed(connection.execute(query).all())]


def _state_said(said: WorkerPresence) -> InstanceState:
    if said.gone:
        return InstanceState.STOPPED
    if said.leaving:
        return InstanceState.DRAINING
    return InstanceState.STARTING if said.is_starting else InstanceState.RUNNING


def _record(row: Row[Any], now_us: int) -> InstanceRecord:
    state = InstanceState(row.state)
    if state.is_live and row.last_seen_us < now_us - _PRESENCE_US:
        state = InstanceState.LOST
    return InstanceRecord(
        instance_id=row.instance_id,
        worker_id=row.worker_id,
        lane=row.lane,
        resource_id=row.resource_id,
        slots=row.slots,
        state=state,
        started_us=row.started_us,
        ready_us=row.ready_us,
        draining_us=row.draining_us,
        stopped_us=row.stopped_us,
        last_seen_us=row.last_seen_us,
    )
