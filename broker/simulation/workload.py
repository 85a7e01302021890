"""What arrives: jobs per step of virtual time, from one or more sources."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from array import array
from math import inf
from pathlib import Path

import msgspec

from broker.domain.errors import UsageError
from broker.domain.identity import LOCAL
from broker.rules.placement.work import Terms

__all__ = ["MODEL", "STEP_S", "Source", "Workload", "read_arrivals", "start_within_s"]

STEP_S = 10
MODEL = "model"
"""Traces name no model; all lanes of a simulation run this one."""

_SECONDS = {"s": 1, "min": 60, "h": 3_600, "d": 86_400}
_COLUMN = re.compile(r"requests_(.+)")
_CLASS = re.compile(r"(\d+)(s|min|h|d)")


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """One tenant's stream of jobs on the same terms. `jobs[i]` come in step i, counted from the workload's start."""

    tenant: str = LOCAL.tenant
    terms: Terms
    start_within_s: float
    jobs: array[float]


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """Sources over time. Steps before second 0 are history: known to the planner, and not run."""

    start_s: int
    arrivals_end_s: int
    sources: tuple[Source, ...]


def start_within_s(deadline_s: float) -> float:
    """By when a job due `deadline_s` after it came must start: service takes a sixtieth of it, 20 s to 10 minutes."""
    return deadline_s - min(600.0, max(20.0, deadline_s / 60))


def read_arrivals(path: Path, tenant: str = LOCAL.tenant) -> Workload:
    """A trace: a CSV with `step_start_s` and one column `requests_<deadline>` (such as 1min, 1h, 24h) per class."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UsageError(f"{path} can't be read: {error}") from None
    rows = list(csv.reader(text.splitlines()))
    if len(rows) < 2 or rows[0][:1] != ["step_start_s"]:
        raise UsageError(f"{path} is no trace: its first column must be step_start_s")
    try:
        figures = [[float(cell) for cell in row] for row in rows[1:]]
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    start_s = int(figures[0][0])
    if any(len(row) != len(rows[0]) or row[0] != start_s + STEP_S * step for step, row in enumerate(figures)):
        raise UsageError(f"{path}: its steps must be {STEP_S} s apart, without gaps, and each have every column")
    for line, row in enumerate(figures, 2):
        for heading, figure in zip(rows[0][1:], row[1:], strict=True):
            if not 0 <= figure < inf:
                raise UsageError(f"{path}, line {line}: {heading} is {figure:g}; it must be a number of 0 or more")
    # A trace that begins later begins now.
    start_s = min(start_s, 0)
    sources = []
    for index, column in enumerate(rows[0][1:], 1):
        name = _COLUMN.fullmatch(column)
        deadline = _CLASS.fullmatch(name[1]) if name else None
        if name is None or deadline is None:
            raise UsageError(f"{path}: column {column!r} names no deadline; expected such as requests_1h")
        within_s = start_within_s(int(deadline[1]) * _SECONDS[deadline[2]])
        jobs = array("d", (row[index] for row in figures))
        sources.append(Source(tenant=tenant, terms=Terms(MODEL, name[1]), start_within_s=within_s, jobs=jobs))
    return Workload(start_s=start_s, arrivals_end_s=start_s + STEP_S * (len(rows) - 1), sources=tuple(sources))
