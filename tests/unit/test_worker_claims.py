"""A claim that can't be asked for: the message goes back to the bus, and whoever gets it next may run the shard."""

from __future__ import annotations

import logging
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from structlog.testing import capture_logs

from broker.bus.apps import NotTaken, start_in_process, worker_app
from broker.bus.publisher import Publisher
from broker.domain.errors import BrokerError
from broker.domain.shard import ClaimAnswer, ClaimShard, RenewAnswer
from tests.unit.builders import World, a_lane, some_lines
from workers.lease import ClaimedOnce, Lease


class ShutOnce:
    """The broker is away at the first question."""

    def __init__(self):
        self.asked = 0

    def claim(self, question):
        self.asked += 1
        if self.asked == 1:
            raise OSError("the broker is away")
        return ClaimAnswer(granted=True, lease_seconds=1.0)


def test_a_shard_whose_claim_failed_may_be_claimed_when_the_bus_brings_it_again():
    once = ClaimedOnce(ShutOnce())
    question = ClaimShard(b"s" * 16, "lane-a", "w1")
    with pytest.raises(OSError, match="away"):
        once.claim(question)
    assert once.claim(question).granted
    assert not once.claim(question).granted


def test_what_was_not_taken_comes_again_and_is_told_in_one_line(caplog):
    url = f"lanemem://claims-{uuid.uuid4().hex}"
    brought, done = [], threading.Event()

    def run_shard(envelope):
        brought.append(envelope)
        if len(brought) == 1:
            raise NotTaken("the broker can't be asked")
        done.set()

    publisher = Publisher(url)
    worker = start_in_process(worker_app("claims", url, ["lane.a.shards"], 1, run_shard=run_shard))
    try:
        with capture_logs() as told:
            publisher.publish_shards("lane.a.shards", [b"envelope"])
            assert done.wait(5)
    finally:
        worker.stop(5)
        publisher.close()
    assert brought == [b"envelope", b"envelope"]
    reason = {"worker": "claims", "reason": "the broker can't be asked"}
    assert [one for one in told if one["log_level"] == "warning"] == [
        {"event": "shard_given_back", "log_level": "warning", **reason}
    ]
    assert [record.name for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_task_that_fails_is_still_logged_with_its_traceback(caplog):
    url, done = f"lanemem://claims-{uuid.uuid4().hex}", threading.Event()

    def run_shard(_envelope):
        done.set()
        raise ValueError("a bug")

    publisher = Publisher(url)
    worker = start_in_process(worker_app("claims", url, ["lane.a.shards"], 1, run_shard=run_shard))
    try:
        publisher.publish_shards("lane.a.shards", [b"envelope"])
        assert done.wait(5)
    finally:
        worker.stop(5)
        publisher.close()
    assert [record.exc_info[0] for record in caplog.records if record.name == "celery.app.trace"] == [ValueError]


class AwayForOneRenewal:
    def __init__(self):
        self.renewals = 0

    def claim(self, _question):
        return ClaimAnswer(granted=True, lease_seconds=15.0)

    def renew(self, _question):
        self.renewals += 1
        if self.renewals == 1:
            raise OSError("the broker is away")
        return RenewAnswer(granted=True, lease_seconds=15.0)


def test_a_renewal_asked_in_vain_is_asked_again_soon():
    lease = Lease(AwayForOneRenewal(), b"s" * 16, "lane-a", "w1")
    assert lease.claim()
    assert lease.renew_seconds == 5.0
    with pytest.raises(OSError, match="away"):
        lease.renew(b"")
    assert lease.renew_seconds == 1.0
    assert lease.renew(b"")
    assert lease.renew_seconds == 5.0


def test_of_many_claims_at_once_each_gets_its_own_answer_and_no_shard_goes_to_two(database, data):
    lanes = [a_lane(name, slots=4, shard_jobs_max=1) for name in ("lane-a", "lane-b")]
    world = World(database, lanes, data)
    world.take_in(some_lines(8))
    sent = world.dispatch()
    asked = [*((shard, "w1") for shard in sent), (sent[0], "w2"), (sent[-1], "w2")]
    with ThreadPoolExecutor(len(asked)) as pool:
        granted = [answer.granted for answer in pool.map(lambda one: world.claim(*one), asked)]
    first, last = granted[0] + granted[-2], granted[len(sent) - 1] + granted[-1]
    assert len(sent) > 2
    assert all(granted[1 : len(sent) - 1])
    assert (first, last) == (1, 1)  # whichever of the two asked first


def test_a_claim_hears_what_became_of_its_transaction(world):
    world.database.close()
    question = ClaimShard(b"s" * 16, "lane-a", "w1")
    with pytest.raises(BrokerError, match="the database is closed"):
        world.door.claim(question)
