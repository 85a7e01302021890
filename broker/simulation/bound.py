"""The least that any policy could spend on a workload: a linear programme that sees the whole future.

Buckets of ten minutes, instances in fractions. `n` instances cost by the hour, each start its billed load, and spot
instances decay at their preemption rate, so no policy that can't foresee a preemption can come below. What waits at
a bucket's end must have come within the time that its class may wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import highspy
import msgspec
import numpy as np
from numpy.typing import NDArray

from broker.domain.errors import UsageError
from broker.rules.placement.lanes import LaneFacts
from broker.rules.placement.table import LaneTable
from broker.simulation.faults import DRAIN_S, Outage, is_away
from broker.simulation.workload import STEP_S, Source, Workload

__all__ = ["bound_usd"]

_BUCKET_S = 600
_LOST_WORK_S = 20.0
_SECONDS_PER_HOUR = 3_600.0

_Row = tuple[list[int], list[float], float, float]


class _Programme(msgspec.Struct):
    """Where each quantity has its column: instances, starts, work by source, and what waits."""

    table: LaneTable
    workload: Workload
    buckets: int

    @property
    def columns(self) -> int:
        lanes, sources = len(self.table.lanes), len(self.workload.sources)
        return self.buckets * (2 * lanes + lanes * sources + sources)

    def instances(self, lane: int, bucket: int) -> int:
        return lane * self.buckets + bucket

    def started(self, lane: int, bucket: int) -> int:
        return (len(self.table.lanes) + lane) * self.buckets + bucket

    def busy(self, lane: int, source: int, bucket: int) -> int:
        lanes, sources = len(self.table.lanes), len(self.workload.sources)
        return (2 * lanes + lane * sources + source) * self.buckets + bucket

    def waiting(self, source: int, bucket: int) -> int:
        lanes, sources = len(self.table.lanes), len(self.workload.sources)
        return (2 * lanes + lanes * sources + source) * self.buckets + bucket


def bound_usd(
    lanes: tuple[LaneFacts, ...],
    workload: Workload,
    outages: tuple[Outage, ...] = (),
    shares: Mapping[str, float] | None = None,
) -> float:
    """The bound in USD. `shares`: the most of the work that each provider named may do, 0 to 1."""
    buckets = -(-(workload.arrivals_end_s + DRAIN_S) // _BUCKET_S)
    programme = _Programme(LaneTable(lanes), workload, buckets)
    came = [_by_bucket(source, workload, buckets) for source in workload.sources]
    upper = np.full(programme.columns, highspy.kHighsInf)
    cost = np.zeros(programme.columns)
    for index, lane in enumerate(lanes):
        usd_per_s = lane.hour_nano_usd / 1e9 / _SECONDS_PER_HOUR
        first = programme.instances(index, 0)
        cost[first : first + buckets] = usd_per_s * _BUCKET_S
        upper[first : first + buckets] = [_quota(lane, outages, bucket) for bucket in range(buckets)]
        first = programme.started(index, 0)
        cost[first : first + buckets] = usd_per_s * lane.start_billed_s
    rows = list(_capacity_rows(programme))
    for index, source in enumerate(workload.sources):
        rows += _flow_rows(programme, index, came[index])
        first = programme.waiting(index, 0)
        upper[first : first + buckets] = _may_wait(came[index], source.start_within_s)
    if shares:
        rows += _share_rows(programme, came, shares)
    return _solve(cost, upper, rows)


def _by_bucket(source: Source, workload: Workload, buckets: int) -> NDArray[np.float64]:
    jobs = np.frombuffer(source.jobs, dtype=np.float64)[-workload.start_s // STEP_S :]
    padded = np.zeros(buckets * (_BUCKET_S // STEP_S))
    padded[: len(jobs)] = jobs
    return np.asarray(padded.reshape(buckets, -1).sum(axis=1), dtype=np.float64)


def _quota(lane: LaneFacts, outages: tuple[Outage, ...], bucket: int) -> float:
    """Instances that the lane may have; a bucket in which it is away for a part counts for the rest of it."""
    steps = range(bucket * _BUCKET_S, (bucket + 1) * _BUCKET_S, STEP_S)
    if not any(one.hits(lane) and one.from_s < steps.stop and steps.start < one.to_s for one in outages):
        return float(lane.quota)
    return lane.quota * sum(not is_away(lane, outages, second) for second in steps) / len(steps)


def _capacity_rows(programme: _Programme) -> Iterable[_Row]:
    """Starts make up for what is new or was taken away; nobody works more than instances are there."""
    for index, lane in enumerate(programme.table.lanes):
        stays = 1.0 - lane.preemptions_per_hour * _BUCKET_S / _SECONDS_PER_HOUR
        useful = 1.0 - lane.preemptions_per_hour * _LOST_WORK_S / _SECONDS_PER_HOUR
        for bucket in range(programme.buckets):
            columns = [programme.started(index, bucket), programme.instances(index, bucket)]
            values = [1.0, -1.0]
            if bucket:
                columns.append(programme.instances(index, bucket - 1))
                values.append(stays)
            yield columns, values, 0.0, highspy.kHighsInf
            busy = [
                programme.busy(index, source, bucket)
                for source, one in enumerate(programme.workload.sources)
                if programme.table.eligible(one.terms).mask >> index & 1
            ]
            columns = [programme.instances(index, bucket), *busy]
            yield columns, [useful, *[-1.0] * len(busy)], 0.0, highspy.kHighsInf


def _flow_rows(programme: _Programme, source: int, came: NDArray[np.float64]) -> Iterable[_Row]:
    """What waits is what waited, and came, less what was done."""
    terms = programme.workload.sources[source].terms
    mask = programme.table.eligible(terms).mask
    places = [index for index in range(len(programme.table.lanes)) if mask >> index & 1]
    speeds = [programme.table.lanes[index].jobs_per_second[terms.kind] * _BUCKET_S for index in places]
    for bucket in range(programme.buckets):
        columns = [programme.waiting(source, bucket), *(programme.busy(index, source, bucket) for index in places)]
        values = [1.0, *speeds]
        if bucket:
            columns.append(programme.waiting(source, bucket - 1))
            values.append(-1.0)
        yield columns, values, float(came[bucket]), float(came[bucket])


def _may_wait(came: NDArray[np.float64], start_within_s: float) -> NDArray[np.float64]:
    """The most that may wait at each bucket's end: what came too late to be due. All is due at the very end."""
    ends_s = np.arange(1, len(came) + 1) * _BUCKET_S
    total = np.concatenate([[0.0], np.cumsum(came)])
    due = np.interp(ends_s - start_within_s, np.arange(len(came) + 1) * _BUCKET_S, total)
    return np.asarray(np.maximum(0.0, total[1:] - due), dtype=np.float64)


def _share_rows(programme: _Programme, came: list[NDArray[np.float64]], shares: Mapping[str, float]) -> Iterable[_Row]:
    table, sources = programme.table, programme.workload.sources
    kinds = [source.terms.kind for source in sources]
    total = sum(table.work(kind, float(jobs.sum())) for kind, jobs in zip(kinds, came, strict=True))
    for provider in table.providers:
        columns, values = [], []
        for index, lane in enumerate(table.lanes):
            if lane.provider == provider:
                for source, kind in enumerate(kinds):
                    columns += [programme.busy(index, source, bucket) for bucket in range(programme.buckets)]
                    values += [table.speeds(kind)[index] * _BUCKET_S] * programme.buckets
        yield columns, values, -highspy.kHighsInf, shares.get(provider, 1.0) * total


def _solve(cost: NDArray[np.float64], upper: NDArray[np.float64], rows: list[_Row]) -> float:
    counts = [len(columns) for columns, _, _, _ in rows]
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(cost), len(rows)
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = cost, np.zeros(len(cost)), upper
    lp.row_lower_ = np.array([low for _, _, low, _ in rows])
    lp.row_upper_ = np.array([high for _, _, _, high in rows])
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    lp.a_matrix_.index_ = np.fromiter((one for columns, _, _, _ in rows for one in columns), dtype=np.int32)
    lp.a_matrix_.value_ = np.fromiter((one for _, values, _, _ in rows for one in values), dtype=np.float64)
    solver = highspy.Highs()  # type: ignore[no-untyped-call]  # its constructor alone has no annotation
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    # The interior point is as good as a vertex here: only the cost is asked for.
    solver.setOptionValue("solver", "ipm")
    solver.setOptionValue("run_crossover", "off")
    solver.passModel(lp)
    solver.run()
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        raise UsageError("No fleet within these quotas can do this work in time, even with perfect foresight.")
    return float(solver.getInfo().objective_function_value)
