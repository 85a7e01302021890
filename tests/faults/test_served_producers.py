"""Producers on the bus while the roles that take their jobs in and tell them of their ends are killed."""

from __future__ import annotations

import random
import time

import pytest

from broker.keys import read_signer, read_trusted
from broker.sdk.jobs_bus import JobsPublisher, Replies
from tests.harness.stand import LaneTerms, Stand, StandTerms

pytestmark = pytest.mark.slow

QUEUE = "replies.faults"
MESSAGES, JOBS_PER_MESSAGE, KILLS = 60, 50, 12
SECONDS_MAX = 120.0


class StandWithProducers(Stand):
    """Its bus is the producers' as well."""

    def _clean_environment(self):
        return super()._clean_environment() | {"BROKER_JOBS_BUS_URL": self.bus.url}


def test_roles_killed_at_random_lose_no_job_over_the_bus_and_store_none_twice():
    terms = StandTerms(lanes=[LaneTerms(name="tpu", workers=2, delay_seconds=0.02, jobs_per_second=400.0)])
    with StandWithProducers(terms) as stand:
        stand.wait_for_workers()
        stand.broker(
            "keys", "producer", "create", "default", "--database-url", stand.postgres.url, "--data", str(stand.data)
        )
        signer, _ = read_signer(stand.folder / "producer-default.key")
        jobs = JobsPublisher(stand.bus.url, signer)
        replies = Replies(stand.bus.url, QUEUE, read_trusted(stand.folder / "broker.pub"))
        keys: list[str] = []
        told: dict[str, int] = {}
        kinds: set[str] = set()
        rng, killed, next_kill = random.Random(7), 0, time.monotonic() + 0.5
        deadline = time.monotonic() + SECONDS_MAX
        while len(told) < MESSAGES * JOBS_PER_MESSAGE or killed < KILLS:
            assert time.monotonic() < deadline, f"{len(told)} told of {len(keys)}, {killed} kills"
            if len(keys) < MESSAGES * JOBS_PER_MESSAGE:
                body = {"model": "m", "messages": [{"role": "user", "content": f"say {len(keys)}"}]}
                keys += jobs.publish([{"body": body}] * JOBS_PER_MESSAGE, reply_to=QUEUE)
            for one in replies.receive(0.1):
                told[one.key] = told.get(one.key, 0) + 1
                kinds.add(one.status)
            if killed < KILLS and time.monotonic() >= next_kill:
                killed += rng.choice(stand.roles).kill() is not None
                next_kill = time.monotonic() + 1.0
        jobs.close()
        replies.close()
        assert (set(told), kinds) == (set(keys), {"succeeded"})
        assert stand.one("SELECT count(*) FROM job") == len(keys)
        assert stand.one("SELECT count(*) FROM job_outcome") == len(keys)
        twice = sum(count - 1 for count in told.values())
        print(f"{len(keys)} jobs, {killed} kills; 0 lost; {twice} told twice")
        said = stand.broker("ledger", "verify", "--database-url", stand.postgres.url, "--data", str(stand.data))
        assert "Every row is as it was written." in said
        assert "of them published." in said
