"""Campaign: workers and every role are killed at random, then restarted one after another, while jobs run."""

from __future__ import annotations

import time

import msgspec

from tests.harness.history import conclude
from tests.harness.producer import Producer
from tests.harness.recovery import orphans_after
from tests.harness.report import Report, say
from tests.harness.stand import IN_PAIRS, LaneTerms, Layout, Stand, StandTerms
from tests.harness.torment import Torment

__all__ = ["KillTerms", "run_kills"]

_PRODUCER_PER_SECOND = 5.0
_RECOVERY_SECONDS_MAX = 20.0


class KillTerms(msgspec.Struct, frozen=True, kw_only=True):
    """`pause_seconds` between blows, on average. A shard that is sent waits for the one before it at its worker, so
    `shard_jobs` and `delay_seconds` are part of how soon work runs again.
    """

    jobs: int = 20_000
    kills: int = 50
    terms: int = 20
    pause_seconds: float = 3.0
    workers_per_lane: int = 2
    layout: Layout = IN_PAIRS
    bus: str = "amqp"
    shard_jobs: int = 8
    delay_seconds: float = 1.3
    settle_seconds: float = 240.0
    seed: int = 20261123


def run_kills(terms: KillTerms, *, keep: bool = False) -> Report:
    """The two cheaper lanes have most of the work; the third has what they have no room for."""
    lanes = [
        LaneTerms(
            name=name,
            provider=provider,
            price=price,
            workers=terms.workers_per_lane,
            delay_seconds=terms.delay_seconds,
            shard_jobs_max=terms.shard_jobs,
        )
        for name, provider, price in (
            ("tpu", "google-tpu", "1.20"),
            ("azure", "azure-gpu", "2.00"),
            ("oracle", "oracle-gpu", "3.60"),
        )
    ]
    report = Report(title=f"Kills: {terms.jobs:,} jobs over {terms.bus}, {len(terms.layout)} processes of roles")
    with Stand(StandTerms(lanes=lanes, layout=terms.layout, bus=terms.bus), keep=keep) as stand:
        say(f"up in {stand.folder}")
        producer = Producer(stand)
        torment = Torment(stand, terms.seed, say)
        began = time.monotonic()
        producer.send_batch(terms.jobs)
        producer.send_singles(_PRODUCER_PER_SECOND)
        time.sleep(terms.pause_seconds)
        torment.kill_some(terms.kills, terms.pause_seconds)
        torment.roll(terms.terms, terms.pause_seconds / 3)
        report.add({"seconds of blows": round(time.monotonic() - began), **dict(sorted(torment.counts.items()))})
        conclude(stand, producer, report, terms.settle_seconds)
        found = orphans_after(stand, torment.blows)
        waits = sorted(one.seconds for one in found)
        report.add({"kills of workers that left orphans": len(found), "orphaned jobs": sum(one.jobs for one in found)})
        report.add({"  sent again after (last)": f"{max((one.sent_seconds for one in found), default=0.0):.1f} s"})
        report.add({"  claimed again after (median)": f"{waits[len(waits) // 2]:.1f} s" if waits else "-"})
        report.at_most("  claimed again after (last)", waits[-1] if waits else 0.0, _RECOVERY_SECONDS_MAX)
        for one in found:
            if one.seconds > _RECOVERY_SECONDS_MAX:
                say(f"slow: {one}")
    return report
