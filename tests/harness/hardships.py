"""Campaigns that kill nobody: a network that cuts, delays and swallows, and a database whose disk is full."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable

import msgspec

from tests.harness.history import conclude
from tests.harness.producer import Producer
from tests.harness.report import Report, say
from tests.harness.stand import IN_PAIRS, LaneTerms, Layout, Stand, StandTerms
from tests.proxy import FaultProxy, Way

__all__ = ["DiskTerms", "NetworkTerms", "run_full_disk", "run_network"]


class NetworkTerms(msgspec.Struct, frozen=True, kw_only=True):
    """`times` a fault of up to `fault_seconds`, each on one of three ways: to the database, the bus and the door."""

    jobs: int = 8_000
    times: int = 30
    fault_seconds: float = 6.0
    pause_seconds: float = 2.0
    bus: str = "amqp"
    layout: Layout = IN_PAIRS
    delay_seconds: float = 0.8
    settle_seconds: float = 180.0
    seed: int = 20261123


class DiskTerms(msgspec.Struct, frozen=True, kw_only=True):
    """The database's disk is full `times`, for `full_seconds` each."""

    jobs: int = 4_000
    times: int = 2
    full_seconds: float = 15.0
    disk_megabytes: int = 400
    bus: str = "amqp"
    layout: Layout = IN_PAIRS
    delay_seconds: float = 0.4
    settle_seconds: float = 180.0


def _lanes(delay_seconds: float) -> list[LaneTerms]:
    return [
        LaneTerms(name=name, provider=provider, price=price, delay_seconds=delay_seconds, shard_jobs_max=16)
        for name, provider, price in (("tpu", "google-tpu", "1.20"), ("azure", "azure-gpu", "2.00"))
    ]


def _cut(proxy: FaultProxy, _seconds: float) -> None:
    proxy.cut()


def _lag(proxy: FaultProxy, seconds: float) -> None:
    proxy.delay(0.1)
    time.sleep(seconds)


def _swallow_all(proxy: FaultProxy, seconds: float) -> None:
    proxy.black_hole()
    time.sleep(seconds)


def _swallow_answers(proxy: FaultProxy, seconds: float) -> None:
    proxy.black_hole(Way.TO_CLIENT)
    time.sleep(seconds)


def _refuse(proxy: FaultProxy, seconds: float) -> None:
    proxy.refuse()
    time.sleep(seconds)


_FAULTS: dict[str, Callable[[FaultProxy, float], None]] = {
    "cut": _cut,
    "late by 100 ms a piece": _lag,
    "swallowed": _swallow_all,
    "answers swallowed": _swallow_answers,
    "refused": _refuse,
}


def run_network(terms: NetworkTerms, *, keep: bool = False) -> Report:
    """Every fault on every way once, in random order, before any comes twice."""
    report = Report(title=f"Network: {terms.times} faults, {terms.jobs:,} jobs over {terms.bus}")
    stand_terms = StandTerms(
        lanes=_lanes(terms.delay_seconds),
        layout=terms.layout,
        bus=terms.bus,
        database_proxied=True,
        bus_proxied=True,
        door_proxied=True,
    )
    with Stand(stand_terms, keep=keep) as stand:
        say(f"up in {stand.folder}\nseed {terms.seed}")
        chance = random.Random(terms.seed)
        producer = Producer(stand)
        producer.send_batch(terms.jobs)
        producer.send_singles(5.0)
        every = [(way, fault) for way in stand.proxies for fault in _FAULTS]
        order: list[tuple[str, str]] = []
        while len(order) < terms.times:
            order += chance.sample(every, len(every))
        counts: Counter[str] = Counter()
        for way, fault in order[: terms.times]:
            proxy = stand.proxies[way]
            _FAULTS[fault](proxy, chance.uniform(0.3, 1.0) * terms.fault_seconds)
            proxy.heal()
            counts[f"{way}: {fault}"] += 1
            time.sleep(chance.uniform(0.5, 1.5) * terms.pause_seconds)
        report.add(dict(sorted(counts.items())))
        conclude(stand, producer, report, terms.settle_seconds)
    return report


def run_full_disk(terms: DiskTerms, *, keep: bool = False) -> Report:
    """Filled to the last byte while jobs run; where PostgreSQL gave up, it is started again once there is room."""
    report = Report(title=f"The database's disk full {terms.times} times, {terms.jobs:,} jobs")
    stand_terms = StandTerms(
        lanes=_lanes(terms.delay_seconds),
        layout=terms.layout,
        bus=terms.bus,
        database_disk_megabytes=terms.disk_megabytes,
    )
    with Stand(stand_terms, keep=keep) as stand:
        say(f"up in {stand.folder}")
        assert stand.disk is not None
        producer = Producer(stand)
        producer.send_batch(terms.jobs)
        producer.send_singles(5.0)
        given_up = 0
        for _ in range(terms.times):
            time.sleep(terms.full_seconds / 2)
            stand.disk.fill()
            time.sleep(terms.full_seconds)
            stand.disk.free()
            if not stand.postgres.answers():
                given_up += 1
                stand.postgres.kill()
                stand.postgres.start()
        report.add({"times that PostgreSQL gave up": given_up})
        conclude(stand, producer, report, terms.settle_seconds)
    return report
