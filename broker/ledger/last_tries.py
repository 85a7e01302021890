"""What jobs were tried for, that then ended without an attempt of their own: how often, and how the last one went."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, func, select

from broker.ledger.tables import attempt

__all__ = ["Tries", "tries_of"]

_LISTED_AT_ONCE = 500


class Tries(NamedTuple):
    """`code` is the last one's error, its outcome where it has none."""

    tries: int
    lane: str
    code: str


_LAST = (
    select(attempt.c.job_id, func.count().label("tries"), func.max(attempt.c.attempt_number).label("attempt_number"))
    .where(attempt.c.job_id.in_(bindparam("job_ids", expanding=True)))
    .group_by(attempt.c.job_id)
    .subquery()
)
_TRIES = select(attempt.c.job_id, _LAST.c.tries, attempt.c.lane, attempt.c.error_code, attempt.c.outcome).join(
    _LAST, (_LAST.c.job_id == attempt.c.job_id) & (_LAST.c.attempt_number == attempt.c.attempt_number)
)


def tries_of(connection: Connection, job_ids: Iterable[bytes]) -> dict[bytes, Tries]:
    """Of those of these jobs that have attempts."""
    asked = sorted(job_ids)
    found: dict[bytes, Tries] = {}
    for start in range(0, len(asked), _LISTED_AT_ONCE):
        rows = connection.execute(_TRIES, {"job_ids": asked[start : start + _LISTED_AT_ONCE]})
        found |= {job_id: Tries(tries, lane, code or outcome) for job_id, tries, lane, code, outcome in rows}
    return found
