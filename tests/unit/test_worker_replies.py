"""Replies that are too large for the lane's bus: the event is cut smaller, and what can't be cut fails its job."""

from __future__ import annotations

import asyncio

from broker.bus.envelope import open_event
from broker.bus.inbox import Inbox
from broker.bus.publisher import Publisher
from broker.domain.errors import ErrorCode
from broker.domain.events import JobRan
from broker.domain.outcome import Outcome
from broker.domain.usage import Usage
from tests.contract.test_claim_check import LANE, RING, SHARD, WORKER
from tests.unit.builders import NOW_US
from workers.outcomes import EventOutlet, OutcomeReport

BUS, OPTIONS = "lanemem://replies", {"max_message_bytes": 50_000}


def ran(index, size):
    return JobRan(index, Outcome.SUCCEEDED, 200, NOW_US, NOW_US, 1, Usage(), b"x" * size, reply_digest=b"d" * 32)


def reported(*jobs):
    """The jobs as the broker hears of them, and how many events that took."""
    publisher = Publisher(BUS, OPTIONS)
    inbox = Inbox(BUS, ["events"], 100, OPTIONS)

    async def tell():
        report = OutcomeReport(
            shard_id=SHARD,
            lane=LANE,
            worker_id="w",
            outlet=EventOutlet(publisher, "events"),
            signer=WORKER,
            clock=lambda: NOW_US,
        )
        for job in jobs:
            report.add(job)
        await report.finish()

    asyncio.run(tell())
    deliveries = inbox.receive(100, 1)
    inbox.acknowledge(deliveries)
    events = [open_event(RING, each.envelope, NOW_US).body for each in deliveries]
    publisher.close()
    inbox.close()
    return sorted((job for event in events for job in event.jobs), key=lambda job: job.index), len(events)


def test_an_event_that_is_too_large_is_cut():
    jobs = [ran(index, 15_000) for index in range(4)]
    assert reported(*jobs) == (jobs, 2)


def test_a_reply_that_is_too_large_fails_its_job_and_no_other():
    (small, large), _ = reported(ran(0, 100), ran(1, 60_000))
    assert small == ran(0, 100)
    assert (large.outcome, large.error_code, large.body) == (Outcome.FAILED, ErrorCode.REPLY_TOO_LARGE, b"")
    assert "can't carry the reply" in large.message
    assert large.reply_digest == b""
