"""What the newest attempts say of the lanes' speeds, for the planner to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Float, case, cast, func, select

from broker.domain.lane import Lane
from broker.domain.outcome import Outcome
from broker.ledger.tables import attempt
from broker.rules.placement.learning import Sample, Speed, SpeedBook

__all__ = ["learned_speeds", "newest_samples"]

_US = 1_000_000
_LEARNED_US = 3_600 * _US
_EVER_US = 2**62


def _sum(of: Any) -> ColumnElement[Any]:  # noqa: ANN401 (a number, or a column of them)
    return func.sum(case((attempt.c.outcome == Outcome.SUCCEEDED, of), else_=0))


_SUMS = (
    attempt.c.lane,
    attempt.c.model,
    _sum(1).label("jobs"),
    _sum(attempt.c.run_us).label("run_us"),
    _sum(cast(attempt.c.run_us, Float) * attempt.c.run_us).label("run_us_squared"),
    _sum(attempt.c.accelerator_us).label("accelerator_us"),
    _sum(case((attempt.c.input_tokens.is_not(None), 1), else_=0)).label("counted"),
    _sum(attempt.c.input_tokens).label("input_tokens"),
    _sum(attempt.c.output_tokens).label("output_tokens"),
    func.max(attempt.c.recorded_us).label("recorded_us"),
)


def learned_speeds(connection: Connection, lanes: Sequence[Lane]) -> dict[str, dict[str, Speed]]:
    """The lanes' speeds by model, as the ledger's last hour shows them; as the catalog believes, where it doesn't."""
    newest_us = connection.execute(select(func.max(attempt.c.recorded_us))).scalar_one() or 0
    book = SpeedBook(lanes)
    samples, _ = newest_samples(connection, newest_us - _LEARNED_US)
    for sample in samples:
        book.observe(newest_us / _US, sample)
    return {
        str(lane.name): {model: book.speed(str(lane.name), model, newest_us / _US) for model in lane.engine.models}
        for lane in lanes
    }


def newest_samples(connection: Connection, after_us: int) -> tuple[list[Sample], dict[str, int]]:
    """The jobs that succeeded since then, by lane and model; and when each lane last brought an end, of any kind."""
    # Bounded on both sides: without statistics, PostgreSQL would read the whole month for the few newest rows.
    newest = (attempt.c.recorded_us > after_us) & (attempt.c.recorded_us < _EVER_US)
    rows = connection.execute(select(*_SUMS).where(newest).group_by(attempt.c.lane, attempt.c.model)).all()
    samples = [
        Sample(
            lane=row.lane,
            model=row.model,
            jobs=int(row.jobs),
            run_s=int(row.run_us) / _US,
            run_s_squared=row.run_us_squared / _US**2,
            accelerator_s=int(row.accelerator_us) / _US,
            counted=int(row.counted),
            input_tokens=int(row.input_tokens or 0),
            output_tokens=int(row.output_tokens or 0),
        )
        for row in rows
    ]
    last: dict[str, int] = {}
    for row in rows:
        last[row.lane] = max(last.get(row.lane, 0), row.recorded_us)
    return samples, last
