"""Statements on lanes that are not well: kept so that all processes know, and the next ones too."""

from __future__ import annotations

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from broker.database.tables import lane_rest
from broker.domain.errors import ErrorCode
from broker.health import LaneFault
from broker.rules.placement.health import Health

__all__ = ["forget_every_health", "forget_health", "keep_health", "kept_health"]

_US = 1_000_000


def kept_health(connection: Connection) -> dict[str, LaneFault]:
    """The lanes that were at fault lately, also those that are on their way back. Seconds are since 1970."""
    return {
        row.lane: LaneFault(
            Health(
                rest_s=row.rest_seconds,
                rests_until_s=row.until_us / _US,
                since_s=row.since_us / _US,
                back_s=None if row.back_us is None else row.back_us / _US,
            ),
            ErrorCode(row.error_code),
        )
        for row in connection.execute(select(lane_rest))
    }


def keep_health(connection: Connection, lane: str, state: LaneFault) -> None:
    """The lane's state from now on."""
    health = state.health
    values = {
        "until_us": round(health.rests_until_s * _US),
        "rest_seconds": health.rest_s,
        "error_code": state.code,
        "since_us": round(health.since_s * _US),
        "back_us": None if health.back_s is None else round(health.back_s * _US),
    }
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(
        kind.insert(lane_rest)
        .values(lane=lane, **values)
        .on_conflict_do_update(index_elements=[lane_rest.c.lane], set_=values)
    )


def forget_every_health(connection: Connection) -> None:
    """All lanes are well, as far as is known."""
    connection.execute(delete(lane_rest))


def forget_health(connection: Connection, lane: str) -> None:
    """The lane is well."""
    connection.execute(delete(lane_rest).where(lane_rest.c.lane == lane))
