"""Campaigns on the way to the database: the server dies, a connection is cut amid COMMIT, the recorder dies there."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable

import msgspec

from broker.bootstrap.roles import Role
from tests.harness.dying_recorder import DEATHS, DEATHS_MAX, POINTS
from tests.harness.dying_thread import RETRY_SECONDS
from tests.harness.history import check_history, conclude, wait_for_ends
from tests.harness.producer import Producer
from tests.harness.report import Report, say
from tests.harness.stand import ALL_IN_ONE, IN_PAIRS, RECORDER_APART, LaneTerms, Layout, Stand, StandTerms

__all__ = [
    "AwayTerms",
    "DatabaseTerms",
    "RecorderTerms",
    "run_commit_cuts",
    "run_database_away",
    "run_database_kills",
    "run_recorder_deaths",
]

_MARKED_COMMIT = b"FROM moved; COMMIT"
"""The end of every write's last message."""
_CUT_SECONDS = 30.0
_FELT = ('"leadership_lost"', '"stage_stuck"', '"stage_failed"')


class DatabaseTerms(msgspec.Struct, frozen=True, kw_only=True):
    """`times` the fault happens; `jobs` should outlast them."""

    jobs: int = 8_000
    times: int = 10
    pause_seconds: float = 8.0
    bus: str = "amqp"
    layout: Layout = IN_PAIRS
    delay_seconds: float = 0.6
    settle_seconds: float = 180.0
    seed: int = 20261123


class RecorderTerms(msgspec.Struct, frozen=True, kw_only=True):
    """Likewise; small shards, so that there are many flushes."""

    jobs: int = 12_000
    times: int = 200
    bus: str = "amqp"
    delay_seconds: float = 0.5
    settle_seconds: float = 900.0


class AwayTerms(msgspec.Struct, frozen=True, kw_only=True):
    """PostgreSQL is stopped for `away_seconds`, longer than the `retry_seconds` for which it is waited in each call.

    One process has all roles, so that nobody takes over from a loop that ended.
    """

    jobs: int = 4_000
    away_seconds: float = 60.0
    retry_seconds: float = 30.0
    bus: str = "amqp"
    delay_seconds: float = 0.5
    back_seconds: float = 30.0
    settle_seconds: float = 180.0


def _lanes(delay_seconds: float, shard_jobs: int = 16) -> list[LaneTerms]:
    return [
        LaneTerms(name=name, provider=provider, price=price, delay_seconds=delay_seconds, shard_jobs_max=shard_jobs)
        for name, provider, price in (("tpu", "google-tpu", "1.20"), ("azure", "azure-gpu", "2.00"))
    ]


def run_database_kills(terms: DatabaseTerms, *, keep: bool = False) -> Report:
    """kill -9 to the whole server, and a new start after up to two seconds."""
    report = Report(title=f"PostgreSQL killed {terms.times} times, {terms.jobs:,} jobs")
    stand_terms = StandTerms(lanes=_lanes(terms.delay_seconds), layout=terms.layout, bus=terms.bus)
    with Stand(stand_terms, keep=keep) as stand:
        say(f"up in {stand.folder}\nseed {terms.seed}")
        chance = random.Random(terms.seed)
        producer = Producer(stand)
        producer.send_batch(terms.jobs)
        producer.send_singles(5.0)
        for _ in range(terms.times):
            time.sleep(chance.uniform(0.5, 1.5) * terms.pause_seconds)
            stand.postgres.kill()
            time.sleep(chance.uniform(0.0, 2.0))
            stand.postgres.start()
        report.add({"kill -9 of PostgreSQL": terms.times})
        conclude(stand, producer, report, terms.settle_seconds)
    return report


def run_database_away(terms: AwayTerms, *, keep: bool = False) -> Report:
    """The server is stopped and, long after everyone has stopped waiting for it, started: all goes on by itself."""
    report = Report(title=f"PostgreSQL away for {terms.away_seconds:g} s, {terms.jobs:,} jobs")
    stand_terms = StandTerms(
        lanes=_lanes(terms.delay_seconds),
        layout=ALL_IN_ONE,
        bus=terms.bus,
        serve={Role.DISPATCHER: ("tests.harness.dying_thread", "serve")},
        variables={RETRY_SECONDS: str(terms.retry_seconds)},
    )
    with Stand(stand_terms, keep=keep) as stand:
        say(f"up in {stand.folder}")
        producer = Producer(stand)
        producer.send_batch(terms.jobs)
        producer.send_singles(2.0)
        _wait_until(lambda: stand.one("SELECT count(*) FROM job_outcome") > 0, terms.settle_seconds)
        stand.postgres.stop()
        time.sleep(terms.away_seconds)
        stand.postgres.start()
        back = time.monotonic()
        before = stand.one("SELECT count(*) FROM shard")
        _wait_until(lambda: stand.one("SELECT count(*) FROM shard") > before, terms.settle_seconds)
        report.at_most("until a shard was dispatched again", time.monotonic() - back, terms.back_seconds)
        log = [line for role in stand.roles for line in role.log.read_text().splitlines()]
        felt = sum(any(word in line for word in _FELT) and '"dispatcher"' in line for line in log)
        report.at_least("times that the dispatcher lost its lead, or a turn failed", felt, 1)
        report.at_least(
            "processes that lived through it", sum(not role.lives for role in stand.roles), len(stand.roles)
        )
        conclude(stand, producer, report, terms.settle_seconds)
    return report


def _wait_until(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.05)


def run_commit_cuts(terms: DatabaseTerms, *, keep: bool = False) -> Report:
    """The next write's COMMIT loses its connection: half the time before it arrives, half of it afterwards."""
    report = Report(title=f"Connection cut amid COMMIT {terms.times} times, {terms.jobs:,} jobs")
    stand_terms = StandTerms(
        lanes=_lanes(terms.delay_seconds), layout=terms.layout, bus=terms.bus, database_proxied=True
    )
    with Stand(stand_terms, keep=keep) as stand:
        say(f"up in {stand.folder}\nseed {terms.seed}")
        chance = random.Random(terms.seed)
        proxy = stand.proxies["database"]
        producer = Producer(stand)
        producer.send_batch(terms.jobs)
        producer.send_singles(5.0)
        cuts: Counter[str] = Counter()
        for _ in range(terms.times):
            arrives = chance.random() < 0.5
            sprung = proxy.cut_when(_MARKED_COMMIT, deliver=arrives, skip=chance.randint(0, 6))
            assert sprung.wait(_CUT_SECONDS), "no COMMIT came by"
            cuts["after it arrived" if arrives else "before it arrived"] += 1
            time.sleep(chance.uniform(0.0, 2.0) * terms.pause_seconds)
        report.add({f"COMMIT cut {name}": count for name, count in cuts.items()})
        doubts = sum("commit_looked_up" in line for one in stand.roles for line in one.log.read_text().splitlines())
        report.add({"commits looked up by the broker": doubts})
        conclude(stand, producer, report, terms.settle_seconds)
    return report


def run_recorder_deaths(terms: RecorderTerms, *, keep: bool = False) -> Report:
    """kill -9 between receiving and commit, amid the transaction, and between commit and acknowledgement."""
    report = Report(title=f"The recorder killed {terms.times} times about its commit, {terms.jobs:,} jobs")
    stand_terms = StandTerms(
        lanes=_lanes(terms.delay_seconds, shard_jobs=8),
        layout=RECORDER_APART,
        bus=terms.bus,
        serve={Role.RECORDER: ("tests.harness.dying_recorder",)},
        variables={DEATHS: "deaths", DEATHS_MAX: str(terms.times)},
    )
    with Stand(stand_terms, keep=keep) as stand:
        say(f"up in {stand.folder}")
        producer = Producer(stand)
        producer.send_batch(terms.jobs)
        settled = wait_for_ends(stand, producer, terms.settle_seconds)
        deaths = Counter((stand.folder / "deaths").read_text().split())
        report.add({f"deaths, events {point}": deaths[point] for point in POINTS})
        report.at_least("deaths", sum(deaths.values()), terms.times)
        report.at_most("until all had ended", settled, terms.settle_seconds)
        check_history(stand, producer, report)
    return report
