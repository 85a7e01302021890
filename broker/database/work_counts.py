"""Statements on what each lane did in each ten minutes, and on providers that had more than their share of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, delete, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from broker.database.planning_tables import share_limit, work_count
from broker.rules.planning import BeyondShare

__all__ = ["counted_us", "forget_before", "keep_work", "kept_work", "share_limits", "write_share_limits"]


def keep_work(connection: Connection, work: Mapping[tuple[int, str, str], int], until_us: int) -> None:
    """Add jobs by ten minutes (the first of them, since 1970), lane and model.

    With them the ledger has been counted up to `until_us`.
    """
    kind = postgresql if connection.dialect.name == "postgresql" else sqlite
    added = kind.insert(work_count)
    rows = [
        {"minute": minute, "lane": lane, "model": model, "jobs": jobs, "counted_us": until_us}
        for (minute, lane, model), jobs in work.items()
    ]
    if rows:
        connection.execute(
            added.on_conflict_do_update(
                index_elements=[work_count.c.minute, work_count.c.lane, work_count.c.model],
                set_={"jobs": work_count.c.jobs + added.excluded.jobs, "counted_us": added.excluded.counted_us},
            ),
            rows,
        )


def counted_us(connection: Connection) -> int | None:
    """Up to when the ledger has been counted; None before the first time."""
    found: int | None = connection.execute(select(func.max(work_count.c.counted_us))).scalar_one()
    return found


def kept_work(connection: Connection, from_minute: int) -> list[tuple[int, str, str, int]]:
    """Minute, lane, model and jobs from then on, in order."""
    rows = connection.execute(
        select(work_count).where(work_count.c.minute >= from_minute).order_by(work_count.c.minute)
    )
    return [(row.minute, row.lane, row.model, row.jobs) for row in rows]


def forget_before(connection: Connection, minute: int) -> None:
    """What was done before then is no longer needed."""
    connection.execute(delete(work_count).where(work_count.c.minute < minute))


def write_share_limits(connection: Connection, limits: Sequence[BeyondShare], now_us: int) -> None:
    """These providers, and no others, had more than their share."""
    connection.execute(delete(share_limit))
    if limits:
        rows = [
            {
                "provider": one.provider,
                "share": one.share,
                "part": one.part,
                "due_by_us": one.due_by_us,
                "noticed_us": now_us,
            }
            for one in limits
        ]
        connection.execute(insert(share_limit), rows)


def share_limits(connection: Connection) -> dict[str, BeyondShare]:
    """The providers that had more than their share, by name."""
    return {
        row.provider: BeyondShare(row.provider, row.share, row.part, row.due_by_us)
        for row in connection.execute(select(share_limit))
    }
