"""Campaign: a worker that has ten minutes of work gets SIGTERM, and another lane has its jobs within seconds."""

from __future__ import annotations

import time

import msgspec

from tests.harness.history import check_history, holds, wait_for_ends
from tests.harness.producer import Producer
from tests.harness.report import Report, say
from tests.harness.stand import IN_PAIRS, LaneTerms, Layout, Stand, StandTerms

__all__ = ["HandbackTerms", "run_handback"]

_CLAIM_SECONDS_MAX = 5.0


class HandbackTerms(msgspec.Struct, frozen=True, kw_only=True):
    """So many jobs of five minutes each, in one shard: half of them are at the engine, the others wait for a place."""

    jobs: int = 20
    job_seconds: float = 300.0
    bus: str = "amqp"
    layout: Layout = IN_PAIRS
    settle_seconds: float = 60.0


def run_handback(terms: HandbackTerms, *, keep: bool = False) -> Report:
    """The cheap lane takes all; when its only worker leaves, the dear one has what is left.

    A job that takes so long is not cheap by itself, hence the other's price.
    """
    slow = LaneTerms(
        name="slow",
        workers=1,
        slots=1,
        concurrency=terms.jobs // 2,
        delay_seconds=terms.job_seconds,
        jobs_per_second=1 / terms.job_seconds,
        shard_seconds=terms.jobs * terms.job_seconds,
        shard_jobs_max=terms.jobs,
    )
    spare = LaneTerms(name="spare", provider="azure-gpu", price="90000", delay_seconds=0.05, shard_jobs_max=terms.jobs)
    report = Report(title=f"SIGTERM amid a shard of {2 * terms.job_seconds / 60:g} minutes, over {terms.bus}")
    with Stand(StandTerms(lanes=[slow, spare], layout=terms.layout, bus=terms.bus), keep=keep) as stand:
        say(f"up in {stand.folder}")
        producer = Producer(stand)
        producer.send_batch(terms.jobs)
        deadline = time.monotonic() + 30
        while not stand.calls():
            assert time.monotonic() < deadline, "the slow lane has not begun"
            time.sleep(0.05)
        time.sleep(1.0)
        [worker] = stand.workers_of("slow")
        asked, pid = time.time(), worker.pid
        worker.retire()
        gone = time.time()
        report.add({"the worker was gone after": f"{gone - asked:.1f} s"})
        settled = wait_for_ends(stand, producer, terms.settle_seconds)
        report.at_most("until all had ended", settled + gone - asked, terms.settle_seconds)
        held = holds(stand)
        mine = [hold for hold in held if hold.worker_id.startswith(stand.worker_process(pid or 0))]
        report.add({"jobs that it held": sum(len(hold.jobs) for hold in mine)})
        again = [(hold.claimed, job) for hold in held if hold.claimed > asked for job in hold.jobs]
        report.at_least("jobs claimed on the other lane", len({job for _, job in again}), terms.jobs)
        report.at_most("  the last of them after", max(at for at, _ in again) - asked, _CLAIM_SECONDS_MAX)
        check_history(stand, producer, report)
    return report
