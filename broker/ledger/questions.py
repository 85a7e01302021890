"""Read-only questions to the ledger: what it cost, how long it took, where it ran, by whatever key one asks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    Label,
    Text,
    case,
    cast,
    distinct,
    func,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB

from broker.domain.errors import UsageError
from broker.domain.outcome import Outcome
from broker.ledger.tables import attempt

__all__ = ["GROUP_KEYS", "SUMMARY_FIELDS", "Filters", "summary"]

_US_PER_DAY = 86_400_000_000
_US_PER_MS = 1_000

GROUP_KEYS: dict[str, ColumnElement[Any]] = {
    "provider": attempt.c.provider,
    "lane": attempt.c.lane,
    "region": attempt.c.region,
    "accelerator": attempt.c.accelerator,
    "market": attempt.c.market,
    "model": attempt.c.model,
    "engine": attempt.c.engine,
    "endpoint": attempt.c.endpoint,
    "outcome": attempt.c.outcome,
    "error_code": attempt.c.error_code,
    "tenant": attempt.c.tenant_id,
    "worker": attempt.c.worker_id,
    "stand_in": attempt.c.stand_in,
    "price_version": attempt.c.price_version,
    "cost_basis": attempt.c.cost_basis,
    "usage_basis": attempt.c.usage_basis,
    "day": cast(attempt.c.recorded_us // literal(_US_PER_DAY, BigInteger), Integer),
}
"""What attempts can be grouped by. `day` is the UTC day on which the attempt was recorded. `tag:NAME` goes as well."""

_TAG = "tag:"

SUMMARY_FIELDS = (
    "jobs",
    "attempts",
    "succeeded",
    "failed",
    "input_tokens",
    "output_tokens",
    "usage_unknown",
    "cost_nano_usd",
    "wasted_nano_usd",
    "unknown_upper_nano_usd",
    "queue_ms_p50",
    "queue_ms_p95",
    "run_ms_p50",
    "run_ms_p95",
)


class Filters(msgspec.Struct, frozen=True, kw_only=True):
    """Which attempts count; None means all. Times are Unix microseconds, the end excluded.

    `tags` are names with the values that they must have.
    """

    tenant_id: str | None = None
    batch_id: bytes | None = None
    since_us: int | None = None
    until_us: int | None = None
    tags: tuple[tuple[str, str], ...] = ()


def summary(connection: Connection, by: Sequence[str], filters: Filters) -> list[dict[str, Any]]:
    """One row per group: its keys, then SUMMARY_FIELDS.

    `succeeded` and `failed` count jobs, by the attempt that ended each; `wasted_nano_usd` is the cost of
    attempts that did not succeed; `unknown_upper_nano_usd` is the most that attempts of unknown cost, which
    count as nothing in the other two, can have cost. Tokens are summed where they are known, None where none are;
    `usage_unknown` counts the attempts of which they aren't. Percentiles are by nearest rank, over attempts, in whole
    milliseconds. Raises UsageError for a key that is not in GROUP_KEYS.
    """
    dialect = connection.dialect.name
    keys = [_key(key, dialect).label(f"key_{place}") for place, key in enumerate(by)]
    conditions = _conditions(filters, dialect)
    sums = connection.execute(
        select(*keys, *_measures(attempt.c)).where(*conditions).group_by(*keys).order_by(*keys)
    ).all()
    queued = _percentiles(connection, keys, attempt.c.queue_us, conditions)
    ran = _percentiles(connection, keys, attempt.c.run_us, conditions)
    found = []
    for row in sums:
        group = tuple(row[: len(by)])
        sums_of = (None if value is None else int(value) for value in row[len(by) :])
        measures = (*sums_of, *queued.get(group, (0, 0)), *ran.get(group, (0, 0)))
        shown = {key: _shown(key, value) for key, value in zip(by, group, strict=True)}
        found.append(shown | dict(zip(SUMMARY_FIELDS, measures, strict=True)))
    return found


def _key(key: str, dialect: str) -> ColumnElement[Any]:
    if key.startswith(_TAG):
        return _tag(key.removeprefix(_TAG), dialect)
    if key not in GROUP_KEYS:
        raise UsageError(f"--by names {key!r}; it takes {', '.join(GROUP_KEYS)}, tag:NAME")
    return GROUP_KEYS[key]


def _tag(name: str, dialect: str) -> ColumnElement[str]:
    """The value of this tag, null where an attempt has no such tag."""
    if not name or '"' in name or "\\" in name:  # SQLite's paths know no way to quote them
        raise UsageError(f"tag {name!r} can't be asked for: its name is empty, or has a quote or a backslash in it")
    if dialect == "postgresql":
        return cast(cast(attempt.c.tags, JSONB)[name].astext, Text)
    return cast(func.json_extract(attempt.c.tags, f'$."{name}"'), Text)


def _percentiles(
    connection: Connection,
    keys: Sequence[Label[Any]],
    value_us: ColumnElement[int],
    conditions: Sequence[ColumnElement[bool]],
) -> dict[tuple[Any, ...], tuple[int, int]]:
    """The 50th and the 95th of each group, in whole milliseconds.

    Attempts are counted by millisecond first, so that what is put in order are milliseconds and not attempts.
    """
    whole_ms = ((value_us + _US_PER_MS // 2) // literal(_US_PER_MS, BigInteger)).label("whole_ms")
    counted = select(*keys, whole_ms, func.count().label("n")).where(*conditions).group_by(*keys, whole_ms).subquery()
    names = [counted.c[key.name] for key in keys]
    ranked = select(
        *names,
        counted.c.whole_ms,
        func.sum(counted.c.n).over(partition_by=names, order_by=counted.c.whole_ms).label("rank"),
        func.sum(counted.c.n).over(partition_by=names).label("n"),
    ).subquery()
    percents = [
        func.min(case((ranked.c.rank * 100 >= ranked.c.n * percent, ranked.c.whole_ms))) for percent in (50, 95)
    ]
    rows = connection.execute(
        select(*(ranked.c[key.name] for key in keys), *percents).group_by(*(ranked.c[key.name] for key in keys))
    )
    return {tuple(group): (int(middle), int(high)) for *group, middle, high in rows}


def _conditions(filters: Filters, dialect: str) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = [_tag(name, dialect) == value for name, value in filters.tags]
    if filters.tenant_id is not None:
        found.append(attempt.c.tenant_id == filters.tenant_id)
    if filters.batch_id is not None:
        found.append(attempt.c.batch_id == filters.batch_id)
    if filters.since_us is not None:
        found.append(attempt.c.recorded_us >= filters.since_us)
    if filters.until_us is not None:
        found.append(attempt.c.recorded_us < filters.until_us)
    return found


def _measures(columns: Any) -> list[ColumnElement[Any]]:  # noqa: ANN401 (SQLAlchemy's column collection is generic over Any)
    succeeded = columns.outcome == Outcome.SUCCEEDED
    return [
        func.count(distinct(columns.job_id)),
        func.count(),
        _count_if(columns.decisive & succeeded),
        _count_if(columns.decisive & ~succeeded),
        func.sum(columns.input_tokens),
        func.sum(columns.output_tokens),
        _count_if(columns.input_tokens.is_(None)),
        func.sum(columns.cost_nano_usd),
        func.sum(case((succeeded, 0), else_=columns.cost_nano_usd)),
        func.sum(columns.cost_upper_nano_usd - columns.cost_nano_usd),
    ]


def _count_if(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.sum(case((condition, 1), else_=0))


def _shown(key: str, value: Any) -> Any:  # noqa: ANN401 (a value of any column)
    if key != "day" or value is None:
        return value
    return (date(1970, 1, 1) + timedelta(days=int(value))).isoformat()
