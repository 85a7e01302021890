"""Statements on the lanes that were ever configured."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec
import structlog
from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from broker.database.tables import lane
from broker.domain.lane import Lane

__all__ = ["find_lanes", "remember_lanes"]

_log = structlog.get_logger(__name__)


def remember_lanes(connection: Connection, lanes: Sequence[Lane]) -> list[Lane]:
    """Keep these lanes as they are now; returns every lane that was ever kept, these among them."""
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    for one in lanes:
        described = kind.insert(lane).values(name=one.name, description=msgspec.msgpack.encode(one))
        connection.execute(
            described.on_conflict_do_update(
                index_elements=[lane.c.name], set_={"description": described.excluded.description}
            )
        )
    return [
        msgspec.msgpack.decode(description, type=Lane)
        for description in connection.execute(select(lane.c.description).order_by(lane.c.name)).scalars()
    ]


def find_lanes(connection: Connection, names: Collection[str]) -> list[Lane]:
    """Those of these lanes that were ever kept, by any process, and that this version can read."""
    rows = connection.execute(select(lane.c.name, lane.c.description).where(lane.c.name.in_(list(names))))
    found = []
    for name, description in rows:
        try:
            found.append(msgspec.msgpack.decode(description, type=Lane))
        except msgspec.DecodeError as error:
            _log.warning("lane_not_read", lane=name, reason=str(error))
    return found
