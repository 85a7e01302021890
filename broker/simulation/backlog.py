"""Waiting jobs on the virtual clock, kept as groups by deadline bucket, with their waits and misses.

Jobs are a fluid: amounts, not things. Nothing is refused; what starts late, or never, is missed.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator
from heapq import merge
from operator import attrgetter

import msgspec

from broker.rules.placement.work import Group
from broker.simulation.workload import STEP_S, Source

__all__ = ["Backlog", "Served"]

_NOTHING = 1e-7


class Cell(msgspec.Struct):
    """The waiting jobs of one group, oldest first: when they came, and how many."""

    source: int
    start_by_s: float
    preemptions: int
    came: deque[list[float]]
    jobs: float = 0.0
    serial: int = 0


class Served(msgspec.Struct):
    """Jobs that began on a lane in one step."""

    source: int
    start_by_s: float
    preemptions: int
    came_s: float
    jobs: float


class Backlog:
    """What waits, by source; and what became of the rest."""

    def __init__(self, sources: tuple[Source, ...]) -> None:
        self.sources = sources
        self.missed = [0.0] * len(sources)
        self.arrived = [0.0] * len(sources)
        self.waits: list[dict[float, float]] = [{} for _ in sources]
        self._buckets_s = [_bucket_s(source.start_within_s) for source in sources]
        self._lines: list[deque[Cell]] = [deque() for _ in sources]
        self._returned: list[Cell] = []
        self._serial = 0
        self._by_group: dict[str, Cell] = {}
        self._tenants = sorted({source.tenant for source in sources})

    @property
    def is_empty(self) -> bool:
        return not self._returned and not any(self._lines)

    def add(self, source: int, now_s: float, jobs: float) -> None:
        """Jobs arrive."""
        self.arrived[source] += jobs
        bucket_s = self._buckets_s[source]
        start_by_s = (now_s + self.sources[source].start_within_s) // bucket_s * bucket_s
        line = self._lines[source]
        if not line or line[-1].start_by_s != start_by_s:
            line.append(Cell(source, start_by_s, 0, deque()))
        line[-1].came.append([now_s, jobs])
        line[-1].jobs += jobs

    def give_back(self, lost: Served) -> None:
        """Jobs whose instance was taken away wait again, with the deadline that they had."""
        self._serial += 1
        came = deque([[lost.came_s, lost.jobs]])
        cell = Cell(lost.source, lost.start_by_s, lost.preemptions + 1, came, lost.jobs, self._serial)
        insort(self._returned, cell, key=attrgetter("start_by_s"))

    def groups(self) -> list[Group]:
        """Everything that waits, for the planner."""
        self.forget_empty()
        groups = [self._group(cell) for line in self._lines for cell in line]
        returned: dict[tuple[int, float, int], float] = {}
        for cell in self._returned:
            key = (cell.source, cell.start_by_s, cell.preemptions)
            returned[key] = returned.get(key, 0.0) + cell.jobs
        groups.extend(
            self._group(Cell(source, start_by_s, preemptions, deque(), jobs))
            for (source, start_by_s, preemptions), jobs in returned.items()
        )
        return groups

    def by_tenant(self) -> dict[str, Iterator[Group]]:
        """What waits, per tenant, earliest deadline first; made while it is read."""
        self._by_group.clear()
        return {tenant: self._earliest_first(tenant) for tenant in self._tenants}

    def serve(self, group_id: str, now_s: float, jobs: float) -> list[Served]:
        """Jobs of a group that came from `by_tenant` begin now; who came first goes first."""
        cell = self._by_group[group_id]
        source = self.sources[cell.source]
        cell.jobs -= jobs
        served = []
        while jobs > _NOTHING and cell.came:
            came_s, waiting = cell.came[0]
            taken = min(waiting, jobs)
            jobs -= taken
            if waiting - taken <= _NOTHING:
                cell.came.popleft()
            else:
                cell.came[0][1] -= taken
            waits = self.waits[cell.source]
            wait_s = now_s - came_s + STEP_S / 2
            waits[wait_s] = waits.get(wait_s, 0.0) + taken
            # The step's last job begins at its end, so that is what counts.
            if now_s + STEP_S > came_s + source.start_within_s:
                self.missed[cell.source] += taken
            served.append(Served(cell.source, cell.start_by_s, cell.preemptions, came_s, taken))
        return served

    def close(self) -> None:
        """What still waits at the end of the run was missed."""
        self.forget_empty()
        for cell in [*self._returned, *(cell for line in self._lines for cell in line)]:
            self.missed[cell.source] += cell.jobs

    def _earliest_first(self, tenant: str) -> Iterator[Group]:
        lines = [line for source, line in zip(self.sources, self._lines, strict=True) if source.tenant == tenant]
        returned = [one for one in self._returned if self.sources[one.source].tenant == tenant]
        for cell in merge(returned, *lines, key=attrgetter("start_by_s")):
            if cell.jobs > _NOTHING:
                group = self._group(cell)
                self._by_group[group.group_id] = cell
                yield group

    def _group(self, cell: Cell) -> Group:
        source = self.sources[cell.source]
        return Group(
            group_id=f"{cell.source}/{cell.start_by_s:.0f}/{cell.preemptions}/{cell.serial}",
            tenant=source.tenant,
            terms=source.terms,
            start_by_s=cell.start_by_s,
            jobs=cell.jobs,
            preemptions=cell.preemptions,
        )

    def waiting(self) -> list[tuple[int, float]]:
        """How many jobs wait, by source."""
        jobs = [sum(cell.jobs for cell in line) for line in self._lines]
        for cell in self._returned:
            jobs[cell.source] += cell.jobs
        return list(enumerate(jobs))

    def forget_empty(self) -> None:
        """Drop groups in which nobody waits."""
        for line in self._lines:
            while line and line[0].jobs <= _NOTHING:
                line.popleft()
        self._returned = [cell for cell in self._returned if cell.jobs > _NOTHING]


def _bucket_s(start_within_s: float) -> float:
    """Deadlines are told apart as finely as it matters."""
    if start_within_s <= 120:
        return STEP_S
    return 60.0 if start_within_s <= 7_200 else 600.0
