"""Statements on jobs, their groups and their payloads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import attrgetter, itemgetter
from typing import Any

import msgspec
from sqlalchemy import Connection, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from broker.database.connection import bulk_insert
from broker.database.tables import job, payload, ready, work_group
from broker.domain.ids import id_at, ids_of_span, new_id, new_span
from broker.domain.job import AcceptedLine, GroupKey, SingleJob, WaitingSpan, WorkGroup
from broker.domain.shard import ShardJob, ShardSpan
from broker.rules.beginnings import label
from broker.rules.grouping import group_digest

__all__ = [
    "are_names_taken",
    "ensure_group",
    "insert_span",
    "known_custom_ids",
    "load_bodies",
    "load_groups",
    "load_shard_jobs",
    "wait",
]

_SALT_BYTES = 16
_RUN_BYTES_MAX = 4_000_000


_GROUP_ID = select(work_group.c.group_id).where(work_group.c.digest == bindparam("of_digest"))


def ensure_group(connection: Connection, key: GroupKey, now_us: int) -> bytes:
    """The id of the group with this key, made on first use."""
    asked = {"of_digest": group_digest(key)}
    if group_id := connection.execute(_GROUP_ID, asked).scalar_one_or_none():
        return bytes(group_id)
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    connection.execute(
        kind.insert(work_group)
        .values(group_id=new_id(), digest=asked["of_digest"], created_us=now_us, **msgspec.structs.asdict(key))
        .on_conflict_do_nothing(index_elements=[work_group.c.digest])
    )
    return bytes(connection.execute(_GROUP_ID, asked).scalar_one())


def load_groups(connection: Connection, group_ids: list[bytes]) -> list[WorkGroup]:
    """The groups of these ids."""
    rows = connection.execute(select(work_group).where(work_group.c.group_id.in_(group_ids)))
    return [
        WorkGroup(row.group_id, GroupKey(row.tenant_id, row.endpoint, row.model, row.constraints, row.deadline_us))
        for row in rows
    ]


def are_names_taken(error: Exception) -> bool:
    """Whether an insert failed because earlier lines of its batch have the same names."""
    return isinstance(error, IntegrityError) and "custom" in str(error.orig)


def known_custom_ids(connection: Connection, batch_id: bytes, custom_ids: list[str]) -> set[str]:
    """Which of these names the batch's earlier lines have taken."""
    taken: set[str] = set()
    for start in range(0, len(custom_ids), 500):
        part = custom_ids[start : start + 500]
        taken.update(
            connection.execute(
                select(job.c.custom_id).where(job.c.batch_id == batch_id, job.c.custom_id.in_(part))
            ).scalars()
        )
    return taken


def insert_span(
    connection: Connection,
    *,
    tenant_id: str,
    group_id: bytes,
    batch_id: bytes | None,
    lines: Sequence[AcceptedLine | SingleJob],
    submitted_us: int,
    deadline_us: int,
    beginning_key: bytes,
    now_us: int,
) -> WaitingSpan:
    """Insert the jobs of one group with consecutive ids in this order, and their payloads; they still have to `wait`.

    Their ids tell `now_us`, the database's time, whatever this machine's clock says.
    """
    first = new_span(now_us)
    ids = ids_of_span(first, len(lines))
    salts = os.urandom(_SALT_BYTES * len(lines))
    bulk_insert(
        connection,
        job,
        [
            (job_id, tenant_id, group_id, batch_id, *_columns_of(line, submitted_us, deadline_us))
            for job_id, line in zip(ids, lines, strict=True)
        ],
    )
    bulk_insert(
        connection,
        payload,
        [
            (job_id, line.body, None, salts[place * _SALT_BYTES : (place + 1) * _SALT_BYTES])
            for place, (job_id, line) in enumerate(zip(ids, lines, strict=True))
        ],
    )
    labelled = label(lines, beginning_key)
    return WaitingSpan(
        first,
        len(lines),
        group_id,
        batch_id,
        deadline_us,
        max(len(line.body) for line in lines),
        beginning=labelled.beginning,
        beginnings=labelled.beginnings,
        submitted_us=submitted_us,
    )


def _columns_of(line: AcceptedLine | SingleJob, submitted_us: int, deadline_us: int) -> tuple[Any, ...]:
    """The columns of `job` from `line_number` on."""
    if isinstance(line, AcceptedLine):
        size = len(line.body)
        return line.line_number, line.custom_id, size, submitted_us, deadline_us, None, None, line.redrive_of
    extras = (line.budget_nano_usd, line.tags, line.redrive_of)
    return None, None, len(line.body), submitted_us, line.deadline_us, *extras


def wait(connection: Connection, spans: list[WaitingSpan]) -> None:
    """Put spans in the line."""
    bulk_insert(connection, ready, [msgspec.structs.astuple(span) for span in spans])


# In no order: PostgreSQL would copy the bodies to sort them. Who reads them sorts.
_PAYLOADS = select(payload.c.job_id, payload.c.body, payload.c.salt).where(
    payload.c.job_id.between(bindparam("first"), bindparam("last"))
)

_BODIES = select(payload.c.job_id, payload.c.body).where(payload.c.job_id.in_(bindparam("of_jobs", expanding=True)))


def load_shard_jobs(connection: Connection, spans: Iterable[ShardSpan]) -> dict[ShardSpan, list[ShardJob]]:
    """What the workers need of each span's jobs. Spans that follow on each other are read as one, up to a few MB."""
    found: dict[ShardSpan, list[ShardJob]] = {}
    for run in _runs(spans):
        count = sum(span.jobs_count for span in run)
        first = run[0].first_job_id
        rows = connection.execute(_PAYLOADS, {"first": first, "last": id_at(first, count - 1)}).all()
        if len(rows) != count:
            raise LookupError(f"{count - len(rows)} of {count} payloads are gone")
        of_jobs = iter(sorted(rows, key=itemgetter(0)))
        for span in run:
            due_us = span.deadline_us
            found[span] = [
                ShardJob(job_id, body, salt, due_us) for job_id, body, salt in islice(of_jobs, span.jobs_count)
            ]
    return found


def load_bodies(connection: Connection, job_ids: Sequence[bytes]) -> dict[bytes, bytes]:
    """The bodies of these jobs, of those that still are in the database."""
    rows = connection.execute(_BODIES, {"of_jobs": list(job_ids)})
    return {bytes(job_id): bytes(body) for job_id, body in rows if body is not None}


def _runs(spans: Iterable[ShardSpan]) -> Iterator[list[ShardSpan]]:
    """The spans sorted, and parted where the next does not follow on the last or a run would get too large."""
    run: list[ShardSpan] = []
    run_bytes, following = 0, b""
    for span in sorted(spans, key=attrgetter("first_job_id")):
        run_bytes += span.jobs_count * span.body_bytes_max
        if run and (span.first_job_id != following or run_bytes > _RUN_BYTES_MAX):
            yield run
            run, run_bytes = [], span.jobs_count * span.body_bytes_max
        run.append(span)
        following = id_at(span.first_job_id, span.jobs_count)
    if run:
        yield run
