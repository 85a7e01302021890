"""What was asked of jobs that end, read for many at once: their tags, and what the digest of a submission is of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, bindparam, func, select

from broker.database.tables import job
from broker.domain.ids import id_offset, span_of

__all__ = ["TAGS", "submitted"]

_COLUMNS = (
    job.c.job_id,
    job.c.line_number,
    job.c.custom_id,
    job.c.submitted_us,
    job.c.deadline_us,
    job.c.budget_nano_usd,
    job.c.tags,
    job.c.redrive_of,
)
TAGS = _COLUMNS.index(job.c.tags)
"""Where a row has its tags."""

_RANGE_JOBS_MIN = 16
_LISTED_AT_ONCE = 500


class _Look(NamedTuple):
    """One question in two forms: a row for each job, and all of them as one JSON text.

    The second is for SQLite, whose driver lets go of the interpreter at each row and has to get it back.
    """

    rows: Select[Any]
    text: Select[Any]

    @classmethod
    def at(cls, which: ColumnElement[bool]) -> Self:
        job_id, *plain, redrive_of = _COLUMNS
        as_array = func.json_array(func.hex(job_id), *plain, func.hex(redrive_of))
        return cls(select(*_COLUMNS).where(which), select(func.json_group_array(as_array)).where(which))


_RANGE = _Look.at(job.c.job_id.between(bindparam("first"), bindparam("last")))
_LISTED = _Look.at(job.c.job_id.in_(bindparam("job_ids", expanding=True)))
_decode = msgspec.json.Decoder(
    list[tuple[str, int | None, str | None, int, int, int | None, str | None, str]]  # as in _COLUMNS
).decode


def submitted(connection: Connection, job_ids: Iterable[bytes]) -> dict[bytes, Sequence[Any]]:
    """These jobs' rows, by id, perhaps among others; those that are gone are left out.

    The jobs of a shard follow on each other, so they are read as a range; single ones are listed.
    """
    spans: dict[bytes, list[bytes]] = defaultdict(list)
    for job_id in job_ids:
        spans[span_of(job_id)].append(job_id)
    rows: dict[bytes, Sequence[Any]] = {}
    listed: list[bytes] = []
    for ids in spans.values():
        first, last = min(ids), max(ids)
        if len(ids) < max(_RANGE_JOBS_MIN, id_offset(first, last) // 4):
            listed += ids
        else:
            rows |= _read(connection, _RANGE, {"first": first, "last": last})
    for start in range(0, len(listed), _LISTED_AT_ONCE):
        rows |= _read(connection, _LISTED, {"job_ids": listed[start : start + _LISTED_AT_ONCE]})
    return rows


def _read(connection: Connection, look: _Look, values: Mapping[str, Any]) -> dict[bytes, Sequence[Any]]:
    if connection.dialect.name != "sqlite":
        return {row[0]: row for row in connection.execute(look.rows, values)}
    unhex = bytes.fromhex
    return {
        (job_id := unhex(row[0])): (job_id, *row[1:-1], unhex(row[-1]) or None)
        for row in _decode(connection.execute(look.text, values).scalar_one())
    }
