"""Statements on single jobs: taken in once per key, looked up by whoever sent them, run again on request.

All are for doors: they take the tenant first, and know no other's jobs and keys.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ARRAY, Connection, Select, Text, cast, func, select, true
from sqlalchemy.dialects import postgresql, sqlite

from broker.database import jobs
from broker.database.connection import bulk_insert
from broker.database.tables import idempotency, job, payload, tenant, work_group
from broker.domain.ids import id_at
from broker.domain.job import GroupKey, SingleJob
from broker.rules.beginnings import by_beginning
from broker.rules.grouping import bucket_deadline_us

__all__ = ["Known", "Original", "ensure_tenant", "insert", "known_keys", "original", "remember_keys"]

_DEADLINES_TOGETHER_US = 100_000
_KEYS_TOGETHER = 500


class Known(msgspec.Struct, frozen=True):
    """What a key stands for."""

    job_id: bytes
    fingerprint: bytes


class Original(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it was asked for. `body` is None when its payload has been pruned."""

    tenant_id: str
    endpoint: str
    model: str
    constraints: str
    submitted_us: int
    deadline_us: int
    budget_nano_usd: int | None
    tags: str | None
    body: bytes | None


def ensure_tenant(connection: Connection, tenant_id: str, now_us: int) -> None:
    """Make the tenant on first use."""
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(kind.insert(tenant).values(tenant_id=tenant_id, created_us=now_us).on_conflict_do_nothing())


def insert(
    connection: Connection, tenant_id: str, singles: Sequence[SingleJob], now_us: int, beginning_key: bytes
) -> list[bytes]:
    """Insert jobs and put them in the line; their ids, in order.

    Jobs of one group that are due within a tenth of a second become one span of consecutive ids, due with its last and
    submitted with its first; those that begin alike have neighbouring ids.
    """
    groups: dict[GroupKey, bytes] = {}
    together: dict[tuple[GroupKey, int], list[int]] = defaultdict(list)
    for place, one in enumerate(singles):
        bucket_us = bucket_deadline_us(one.deadline_us, one.submitted_us)
        key = GroupKey(tenant_id, one.endpoint, one.model, one.constraints, bucket_us)
        together[key, one.deadline_us // _DEADLINES_TOGETHER_US].append(place)
    ids: dict[int, bytes] = {}
    spans = []
    for (key, _), mixed in together.items():
        if key not in groups:
            groups[key] = jobs.ensure_group(connection, key, now_us)
        grouped = by_beginning(_Placed(place, singles[place].beginning) for place in mixed)
        places = [placed.place for placed in grouped]
        span = jobs.insert_span(
            connection,
            tenant_id=tenant_id,
            group_id=groups[key],
            batch_id=None,
            lines=[singles[place] for place in places],
            submitted_us=min(singles[place].submitted_us for place in places),
            deadline_us=max(singles[place].deadline_us for place in places),
            beginning_key=beginning_key,
            now_us=now_us,
        )
        spans.append(span)
        ids |= {place: id_at(span.first_job_id, offset) for offset, place in enumerate(places)}
    jobs.wait(connection, spans)
    return [ids[place] for place in range(len(singles))]


class _Placed(NamedTuple):
    """A job's place in the list that it came in."""

    place: int
    beginning: bytes


def known_keys(connection: Connection, tenant_id: str, keys: Sequence[str]) -> dict[str, Known]:
    """What these keys stand for, of those that were used before."""
    found: dict[str, Known] = {}
    for start in range(0, len(keys), _KEYS_TOGETHER):
        lookup = _lookup_each if connection.dialect.name == "postgresql" else _lookup
        rows = connection.execute(lookup(tenant_id, keys[start : start + _KEYS_TOGETHER]))
        found |= {row.idempotency_key: Known(row.job_id, row.fingerprint) for row in rows}
    return found


def _lookup(tenant_id: str, keys: Sequence[str]) -> Select[Any]:
    return select(idempotency).where(idempotency.c.tenant_id == tenant_id, idempotency.c.idempotency_key.in_(keys))


def _lookup_each(tenant_id: str, keys: Sequence[str]) -> Select[Any]:
    """One look into the index for each key: a planner without fresh statistics would read all of the tenant's."""
    asked = func.unnest(cast(list(keys), ARRAY(Text))).table_valued("key").render_derived(name="asked")
    of_key = (idempotency.c.tenant_id == tenant_id, idempotency.c.idempotency_key == asked.c.key)
    found = select(idempotency).where(*of_key).limit(1).lateral("found")
    return select(found).select_from(asked).join(found, true())


def remember_keys(connection: Connection, tenant_id: str, keys: dict[str, Known], now_us: int) -> None:
    """Keep what new keys stand for."""
    rows = [(tenant_id, key, known.fingerprint, known.job_id, now_us) for key, known in keys.items()]
    bulk_insert(connection, idempotency, rows)


def original(connection: Connection, tenant_id: str, job_id: bytes) -> Original | None:
    """What was asked for with this job of the tenant."""
    row = connection.execute(
        select(
            job.c.tenant_id,
            work_group.c.endpoint,
            work_group.c.model,
            work_group.c.constraints,
            job.c.submitted_us,
            job.c.deadline_us,
            job.c.budget_nano_usd,
            job.c.tags,
            payload.c.body,
        )
        .join(work_group, work_group.c.group_id == job.c.group_id)
        .outerjoin(payload, payload.c.job_id == job.c.job_id)
        .where(job.c.job_id == job_id, job.c.tenant_id == tenant_id)
    ).one_or_none()
    return Original(**row._mapping) if row else None  # noqa: SLF001 (SQLAlchemy's public name for it)
