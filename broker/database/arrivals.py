"""Statements on what came when: counted from the jobs' ids, which tell the database's time, and kept by the minute."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

import msgspec
from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from broker.database.planning_tables import arrival_count
from broker.database.tables import job

__all__ = ["ArrivalTerms", "Arrivals", "count_jobs", "forget_before", "keep_arrivals", "kept_arrivals"]


class ArrivalTerms(msgspec.Struct, frozen=True):
    """What jobs that come have in common. `constraints` is their canonical text."""

    model: str
    constraints: str
    window_seconds: int


class Arrivals(msgspec.Struct, frozen=True):
    """Jobs of one group that came within a while; the shortest time that any of them may take."""

    group_id: bytes
    jobs: int
    window_us: int


def count_jobs(connection: Connection, from_us: int, until_us: int) -> list[Arrivals]:
    """The jobs whose ids were made then, to the millisecond."""
    first, end = _first_id(from_us), _first_id(until_us)
    rows = connection.execute(
        select(job.c.group_id, func.count(), func.min(job.c.deadline_us - job.c.submitted_us))
        .where(job.c.job_id >= first, job.c.job_id < end)
        .group_by(job.c.group_id)
    )
    return [Arrivals(group_id, int(count), int(window_us)) for group_id, count, window_us in rows]


def keep_arrivals(connection: Connection, minute: int, came: Mapping[ArrivalTerms, int]) -> None:
    """Add to what came in this minute, counted since 1970."""
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    for terms, jobs in came.items():
        added = kind.insert(arrival_count).values(
            minute=minute,
            terms_digest=sha256(msgspec.msgpack.encode(terms)).digest(),
            model=terms.model,
            constraints=terms.constraints,
            window_seconds=terms.window_seconds,
            jobs=jobs,
        )
        connection.execute(
            added.on_conflict_do_update(
                index_elements=[arrival_count.c.minute, arrival_count.c.terms_digest],
                set_={"jobs": arrival_count.c.jobs + added.excluded.jobs},
            )
        )


def kept_arrivals(connection: Connection, from_minute: int) -> list[tuple[int, ArrivalTerms, int]]:
    """What came in each minute from then on, in order."""
    rows = connection.execute(
        select(arrival_count).where(arrival_count.c.minute >= from_minute).order_by(arrival_count.c.minute)
    )
    return [(row.minute, ArrivalTerms(row.model, row.constraints, row.window_seconds), row.jobs) for row in rows]


def forget_before(connection: Connection, minute: int) -> None:
    """What came before then is no longer needed."""
    connection.execute(delete(arrival_count).where(arrival_count.c.minute < minute))


def _first_id(moment_us: int) -> bytes:
    """No id of that millisecond or a later one is less."""
    return max(0, moment_us // 1_000).to_bytes(6, "big") + bytes(10)
