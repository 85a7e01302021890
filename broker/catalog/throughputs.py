"""Throughputs: how fast a model runs on an accelerator, as published, each figure with its source and date.

`throughputs.csv` ships with the package; a catalog may name a file of its own, whose rows come first. A figure is where
belief begins for a lane of which nothing is said and nothing was measured yet; the planner learns from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from functools import cache
from importlib import resources
from math import isfinite, log
from typing import Any

import msgspec

from broker.catalog.csv_rows import CsvRow, read_rows
from broker.catalog.known_hardware import known_accelerators

__all__ = ["Throughput", "best_throughput", "published_throughputs", "read_throughputs"]

_COLUMNS = (
    "model",
    "accelerator",
    "accelerator_count",
    "precision",
    "engine",
    "concurrency",
    "input_tokens",
    "output_tokens",
    "output_tokens_per_second",
    "source",
    "as_of",
    "notes",
)
_NEEDED = ("model", "accelerator", "accelerator_count", "output_tokens", "output_tokens_per_second", "source", "as_of")
_DAYS_MAX = 1_095
_PRECISIONS = ("bf16", "fp16", "fp8", "fp4", "int8", "int4")
_TOKENS_MAX = 10_000_000
_EACH_PER_SECOND_MAX = 500_000.0
"""Output tokens of one accelerator in a second: nine times the fastest figure that was ever read."""

_TYPICAL_INPUT_TOKENS = 1_000
_TYPICAL_OUTPUT_TOKENS = 250


class Throughput(msgspec.Struct, frozen=True, kw_only=True):
    """What `accelerator_count` accelerators together did of one model: output tokens per second, over all requests.

    Empty or None is what the source doesn't say. `concurrency`: requests at once, None for as many as it took.
    """

    model: str
    accelerator: str
    accelerator_count: int
    precision: str
    engine: str
    concurrency: int | None
    input_tokens: int | None
    output_tokens: int
    output_tokens_per_second: float
    source: str
    as_of: str
    notes: str

    @property
    def jobs_per_second(self) -> float:
        """Of jobs with as many tokens as were measured with."""
        return self.output_tokens_per_second / self.output_tokens


def read_throughputs(
    name: str, content: bytes, today: date | None = None, *, days_max: int | None = _DAYS_MAX
) -> list[Throughput]:
    """The figures in a file, in its order. Raises UsageError with one sentence naming file, row and field.

    `days_max`: how old a figure may be; None where a stale one must not keep anybody from starting.
    """
    day = today or datetime.now(UTC).date()

    def make(number: int, row: dict[str, Any]) -> _Row:
        return _Row(name, number, row, day, days_max)

    rows = read_rows(name, content, _COLUMNS, _NEEDED, "a file of throughputs", make)
    return [row.throughput() for row in rows]


@cache
def published_throughputs() -> tuple[Throughput, ...]:
    """Those that ship with the package. They were fresh when it was made, and don't end a program that grows old."""
    content = resources.files("broker.catalog").joinpath("throughputs.csv").read_bytes()
    return tuple(read_throughputs("throughputs.csv", content, date(2026, 11, 23)))


def best_throughput(
    figures: Sequence[Throughput],
    model: str,
    accelerator: str,
    accelerator_count: int,
    *,
    precision: str = "",
    concurrency: int | None = None,
) -> tuple[Throughput, float] | None:
    """The figure nearest to such an instance, and the jobs per second that follow for it; None where nothing is known.

    A figure of fewer accelerators counts as often as they fit. Of several, one of the same count comes first, then
    jobs most like the typical one (1,000 tokens in, 250 out), then the nearest concurrency, then the slowest.
    """
    fitting = [
        one
        for one in figures
        if _plain(one.model) == _plain(model)
        and _same_hardware(one.accelerator) == _same_hardware(accelerator)
        and accelerator_count % one.accelerator_count == 0
        and (not precision or one.precision in ("", precision))
    ]
    if not fitting:
        return None

    def order(one: Throughput) -> tuple[bool, float, float, float]:
        unlike = abs(log(one.output_tokens / _TYPICAL_OUTPUT_TOKENS))
        if one.input_tokens is not None:
            unlike += abs(log(one.input_tokens / _TYPICAL_INPUT_TOKENS))
        apart = abs(log(one.concurrency / concurrency)) if one.concurrency and concurrency else 0.0
        # Rounded, for 2,048 in and 128 out is as unlike as 1,000 and 1,000, whatever the last bit says.
        return one.accelerator_count != accelerator_count, round(unlike, 6), apart, one.jobs_per_second

    nearest = min(fitting, key=order)
    return nearest, nearest.jobs_per_second * (accelerator_count // nearest.accelerator_count)


def _plain(model: str) -> str:
    """A model's name without whose it is, and without what only says that it was taught to answer."""
    return model.rpartition("/")[2].lower().removesuffix("-instruct")


def _same_hardware(accelerator: str) -> str:
    return accelerator.lower().removesuffix("-sxm")


class _Row(CsvRow):
    """One row, checked as it is made."""

    def __init__(self, file: str, number: int, row: dict[str, Any], today: date, days_max: int | None) -> None:
        super().__init__(file, number, row)
        for field in ("model", "accelerator"):
            if not self.text(field):
                self.refuse(field, "is empty")
        self.check_origin(today, days_max)
        self._count = self._accelerator_count()
        if self.text("precision") and self.text("precision") not in _PRECISIONS:
            self.refuse(
                "precision", f"{self.text('precision')[:20]!r} is unknown; it must be one of {', '.join(_PRECISIONS)}"
            )
        self._concurrency = self._whole_or_none("concurrency")
        self._input_tokens = self._tokens("input_tokens") if self.text("input_tokens") else None
        self._output_tokens = self._tokens("output_tokens")
        self._rate = self._output_tokens_per_second()
        self.key = (
            _plain(self.text("model")),
            _same_hardware(self.text("accelerator")),
            str(self._count),
            *map(self.text, ("precision", "engine", "concurrency", "input_tokens", "output_tokens")),
        )

    def throughput(self) -> Throughput:
        """What it says."""
        return Throughput(
            accelerator_count=self._count,
            concurrency=self._concurrency,
            input_tokens=self._input_tokens,
            output_tokens=self._output_tokens,
            output_tokens_per_second=self._rate,
            **{name: self.text(name) for name in ("model", "precision", "engine", "source", "as_of", "notes")},
            accelerator=self.text("accelerator").lower(),
        )

    def _accelerator_count(self) -> int:
        count = self.whole("accelerator_count")
        known = known_accelerators().get(self.text("accelerator").lower())
        # A figure may be of a part of an instance, but of no part that its instances can't be divided into.
        if known and all(whole % count for whole in known.counts):
            self.refuse("accelerator_count", f"no instance with {self.text('accelerator')} has {count} or a multiple")
        return count

    def _whole_or_none(self, field: str) -> int | None:
        return self.whole(field) if self.text(field) else None

    def _tokens(self, field: str) -> int:
        tokens = self.whole(field)
        if tokens > _TOKENS_MAX:
            self.refuse(field, f"{tokens} is above {_TOKENS_MAX}, which can't be")
        return tokens

    def _output_tokens_per_second(self) -> float:
        field = "output_tokens_per_second"
        try:
            rate = float(self.text(field))
        except ValueError:
            rate = 0.0
        if not isfinite(rate) or rate <= 0:
            self.refuse(field, f"{self.text(field)[:20]!r} is not a number above 0")
        if rate / self._count > _EACH_PER_SECOND_MAX:
            each = f"{rate / self._count:,.0f}"
            self.refuse(field, f"{each} for each accelerator is above {_EACH_PER_SECOND_MAX:,.0f}, which can't be")
        return rate
