"""Campaign: workers are stopped (SIGSTOP) past their leases and continued; their work runs elsewhere meanwhile."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from typing import NamedTuple

import msgspec

from tests.harness.history import check_history, holds, wait_for_ends
from tests.harness.producer import Producer
from tests.harness.report import Report, say
from tests.harness.stand import IN_PAIRS, LaneTerms, Layout, Stand, StandTerms
from tests.harness.supervised import Supervised

__all__ = ["FreezeTerms", "run_freezes"]

_RAN_US = 1_000
_REST_SECONDS = 3.0
_TAKEN_BACK_SECONDS = 18.0  # a lease, the rescuer's second, and what a busy machine adds


class FreezeTerms(msgspec.Struct, frozen=True, kw_only=True):
    """`stops` in all, so many `at_once`. Half are continued just after their lease, the others later than their
    work takes elsewhere.
    """

    stops: int = 50
    at_once: int = 10
    job_seconds: float = 3.0
    bus: str = "amqp"
    layout: Layout = IN_PAIRS
    settle_seconds: float = 180.0
    seed: int = 20261123


class Stopped(NamedTuple):
    """What a worker had in hand as it was stopped: shards, each with the jobs that had not ended."""

    at: float
    hands: list[tuple[bytes, list[bytes]]]


def run_freezes(terms: FreezeTerms, *, keep: bool = False) -> Report:
    """The cheap lane's workers are stopped, one job or two in hand each; the dear lane has room for what is theirs."""
    shaky = LaneTerms(
        name="shaky", workers=terms.at_once, slots=1, shard_jobs_max=3, concurrency=4, delay_seconds=terms.job_seconds
    )
    sound = LaneTerms(
        name="sound",
        provider="azure-gpu",
        price="20.00",  # its instances do six times as much
        workers=2,
        slots=8,
        shard_jobs_max=3,
        concurrency=24,
        delay_seconds=terms.job_seconds,
    )
    report = Report(title=f"Stops past the lease: {terms.stops} of {terms.at_once} workers, over {terms.bus}")
    with Stand(StandTerms(lanes=[shaky, sound], layout=terms.layout, bus=terms.bus), keep=keep) as stand:
        say(f"up in {stand.folder}\nseed {terms.seed}")
        producer = Producer(stand)
        chance = random.Random(terms.seed)
        stopped: list[Stopped] = []
        rounds = 0
        while len(stopped) < terms.stops:
            rounds += 1
            producer.send_batch(12 * terms.at_once)
            victims = stand.workers_of("shaky")[: terms.stops - len(stopped)]
            _wait_until_busy(stand, victims)
            stopped += _stop_and_continue(stand, victims, chance, terms)
            assert wait_for_ends(stand, producer, terms.settle_seconds) >= 0, "the jobs did not end"
        report.add({"rounds": rounds})
        time.sleep(_REST_SECONDS)  # late words may still be on their way
        _tell(stand, stopped, report, terms)
        check_history(stand, producer, report)
    return report


def _wait_until_busy(stand: Stand, workers: list[Supervised]) -> None:
    """Until each has begun a shard, a moment ago."""
    deadline = time.monotonic() + 60
    while True:
        running = {name for (name,) in stand.query("SELECT worker_id FROM shard WHERE state = 'running'")}
        busy = [any(name.startswith(stand.worker_process(one.pid or 0)) for name in running) for one in workers]
        if all(busy):
            return
        assert time.monotonic() < deadline, f"only {sum(busy)} of {len(busy)} workers have work"
        time.sleep(0.05)


def _stop_and_continue(
    stand: Stand, victims: list[Supervised], chance: random.Random, terms: FreezeTerms
) -> list[Stopped]:
    """All are stopped at once, and continued one by one."""
    for victim in victims:
        victim.freeze()
    at = time.time()
    time.sleep(0.3)  # what was under way to the database is there
    held = [hold for hold in holds(stand) if hold.state == "running" and hold.missing]
    soon, late = _TAKEN_BACK_SECONDS, _TAKEN_BACK_SECONDS + 3 * terms.job_seconds
    seconds_of = {one.name: chance.uniform(soon, soon + 1) if place % 2 else late for place, one in enumerate(victims)}
    found = []
    for victim in sorted(victims, key=lambda one: seconds_of[one.name]):
        seconds = seconds_of[victim.name]
        time.sleep(max(0.0, at + seconds - time.time()))
        worker = stand.worker_process(victim.pid or 0)
        found.append(Stopped(at, [(hold.shard_id, hold.missing) for hold in held if hold.worker_id.startswith(worker)]))
        victim.thaw()
    return found


def _tell(stand: Stand, stopped: list[Stopped], report: Report, terms: FreezeTerms) -> None:
    held = {hold.shard_id: hold for hold in holds(stand)}
    claims = defaultdict(list)
    for hold in held.values():
        for job in hold.jobs:
            claims[job].append((hold.claimed, hold.shard_id))
    rows = "SELECT shard_id, job_id, outcome, decisive, cost_nano_usd, run_us FROM attempt"
    attempts = {(shard.bytes, job.bytes): rest for shard, job, *rest in stand.query(rows)}
    late: Counter[str] = Counter()
    elsewhere = free = kept = jobs = 0
    for one in stopped:
        for shard, missing in one.hands:
            kept += held[shard].state != "taken_back"
            for job in missing:
                jobs += 1
                elsewhere += any(at > one.at and other != shard for at, other in claims[job])
                outcome, decisive, cost, run_us = attempts.get((shard, job), ("not recorded", False, 0, _RAN_US))
                late[f"{outcome}{', and first' if decisive else ''}"] += 1
                # One that began as the worker woke, and was stopped at once for the lease was lost, cost nothing.
                free += not cost and run_us >= _RAN_US
    report.at_least("stops with work in hand", sum(bool(one.hands) for one in stopped), terms.stops)
    report.add({"jobs in hand": jobs})
    if kept:
        report.faults.append(f"{kept} shards kept their lease over a stop")
    report.figures["  that ran elsewhere"] = f"{elsewhere:,}"
    if elsewhere != jobs:
        report.faults.append(f"{jobs - elsewhere} jobs were not claimed again")
    report.add({f"  late word: {name}": count for name, count in sorted(late.items())})
    report.figures["  without a cost"] = f"{free:,}"
    if free:
        report.faults.append(f"{free} late results have no cost")
