"""Campaign: the bus loses everything at once, or dies, while thousands of jobs are on it or with workers.

Workers take what is sent as soon as they have room, and results are recorded as they come: little lies on the bus.
So that the loss is one, the recorder is stopped for a moment before, which leaves results there; and one lane's
workers are killed with it, so that what they had not begun is nowhere.
"""

from __future__ import annotations

import time

import msgspec

from tests.harness.history import check_history, jobs_of_shards, wait_for_ends
from tests.harness.producer import Producer
from tests.harness.report import Report, say
from tests.harness.stand import RECORDER_APART, LaneTerms, Stand, StandTerms

__all__ = ["BusLossTerms", "run_bus_loss"]

_PLACES = 96
_FILL_SECONDS = 120.0
_RECOVERY_SECONDS_MAX = 60.0


class BusLossTerms(msgspec.Struct, frozen=True, kw_only=True):
    """`in_flight`: jobs of shards that are sent or running at the loss; half as many more wait.

    The workers would need `work_seconds` for what is in flight. `results_seconds` of results are on the bus.
    """

    in_flight: int = 5_000
    losses: int = 1
    bus: str = "amqp"
    shard_jobs: int = 160
    work_seconds: float = 20.0
    results_seconds: float = 2.0
    shard_seconds: float = 10.0
    settle_seconds: float = 240.0


def run_bus_loss(terms: BusLossTerms, *, keep: bool = False) -> Report:
    """Each loss is of a full bus; the time counts until the last job that was in flight then has ended."""
    slots = -(-terms.in_flight // (2 * 2 * terms.shard_jobs)) + 1
    lanes = [
        LaneTerms(
            name=name,
            provider=provider,
            slots=slots,
            shard_jobs_max=terms.shard_jobs,
            concurrency=_PLACES,
            delay_seconds=2 * _PLACES * terms.work_seconds / terms.in_flight,
            jobs_per_second=100.0,
            shard_seconds=terms.shard_seconds,
        )
        for name, provider in (("tpu", "google-tpu"), ("azure", "azure-gpu"))
    ]
    report = Report(title=f"Loss of the bus: {terms.bus}, {terms.in_flight:,} jobs in flight")
    with Stand(StandTerms(lanes=lanes, layout=RECORDER_APART, bus=terms.bus), keep=keep) as stand:
        say(f"up in {stand.folder}")
        producer = Producer(stand)
        for number in range(terms.losses):
            producer.send_batch(terms.in_flight + terms.in_flight // 2)
            _wait_until_full(stand, terms.in_flight)
            _lose_once(stand, producer, report, terms, f"loss {number + 1}: ")
        check_history(stand, producer, report)
    return report


def _in_flight(stand: Stand) -> tuple[int, int]:
    """Jobs of shards that are sent or running, and those of them that have not ended but run."""
    open_jobs = "SELECT sum(jobs_count), sum(jobs_count) FILTER (WHERE state = 'running') FROM shard"
    [(all_open, running)] = stand.query(f"{open_jobs} WHERE closed_us IS NULL AND state IN ('sent', 'running')")
    return int(all_open or 0), int(running or 0)


def _wait_until_full(stand: Stand, wanted: int) -> None:
    """Until so many are in flight, a good part of them with workers, and results come back."""
    deadline = time.monotonic() + _FILL_SECONDS
    before = stand.one("SELECT count(*) FROM job_outcome")
    while True:
        all_open, running = _in_flight(stand)
        ended = stand.one("SELECT count(*) FROM job_outcome") - before
        if all_open >= wanted and running >= wanted // 4 and ended >= wanted // 50:
            return
        assert time.monotonic() < deadline, f"{all_open} jobs in flight, and not {wanted}"
        time.sleep(0.02)


def _lose_once(stand: Stand, producer: Producer, report: Report, terms: BusLossTerms, name: str) -> None:
    recorder = stand.roles[-1]
    recorder.freeze()
    time.sleep(terms.results_seconds)
    waiting = stand.bus_kind.waiting(stand.bus, [f"lane.{one.name}.events" for one in stand.terms.lanes])
    report.add({f"{name}results on the bus": "unknown" if waiting is None else waiting})
    at_us = int(time.time() * 1e6)
    stand.bus_kind.lose(stand.bus)
    for worker in stand.workers_of("tpu"):
        worker.kill()
    recorder.thaw()
    shards = stand.query(
        "SELECT shard_id, jobs_count, claimed_us <= %s FROM shard WHERE created_us <= %s AND closed_us IS NULL",
        (at_us, at_us),
    )
    stand.bus_kind.restore(stand.bus)
    if stand.bus_kind.needs_apply:
        stand.broker("bus", "apply")
    report.at_least(f"{name}jobs in flight", sum(count for _, count, _ in shards), terms.in_flight * 3 // 4)
    report.add({f"{name}of them with workers": sum(count for _, count, claimed in shards if claimed)})
    report.add({f"{name}until the bus was there again": f"{time.time() - at_us / 1e6:.1f} s"})
    settled = wait_for_ends(stand, producer, terms.settle_seconds)
    report.at_most(f"{name}until all had ended", settled, terms.settle_seconds)
    forgotten = "SELECT count(*) FROM shard WHERE state = 'taken_back' AND claimed_us IS NULL AND created_us <= %s"
    # A bus that keeps what it confirmed may still bring them.
    report.at_least(
        f"{name}shards that nobody had any more", stand.one(forgotten, (at_us,)), int(stand.bus_kind.forgets)
    )
    ended = _ended_after(stand, shards, at_us)
    report.at_most(f"{name}until what was in flight had ended", ended, _RECOVERY_SECONDS_MAX)


def _ended_after(stand: Stand, shards: list[tuple[object, ...]], at_us: int) -> float:
    """Until the last job of these shards had its outcome."""
    wanted = {shard for shard, _, _ in shards}
    ends = {job.bytes: us for job, us in stand.query("SELECT job_id, recorded_us FROM job_outcome")}
    found = [ends[job] for shard, jobs in jobs_of_shards(stand).items() if shard in wanted for job in jobs]
    return max(0.0, (max(found) - at_us) / 1e6)
