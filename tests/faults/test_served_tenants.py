"""Two tenants' producers on one RabbitMQ, as they run: the tenant of a job is its key's owner, in everything."""

from __future__ import annotations

import json

import pytest

from broker.domain.ids import format_id
from broker.keys import read_signer, read_trusted
from broker.sdk.jobs_bus import JobsPublisher, Replies
from tests.flow.served import Served, a_body
from tests.services.private_rabbit import PrivateRabbit

pytestmark = pytest.mark.slow


@pytest.fixture
def served(tmp_path, postgres_url):
    with PrivateRabbit() as rabbit:
        made = Served(tmp_path, postgres_url, rabbit.url)
        yield made
        made.close()


def test_two_tenants_over_rabbitmq_get_their_own_replies_alone(served):
    """Both use the same idempotency keys, and one would have its replies written into the other's queue."""
    tenants = ("blue", "red")
    served.broker("keys", "lane", "create", "tpu")
    for tenant in tenants:
        served.broker("keys", "producer", "create", tenant)
    ring = read_trusted(served.folder / "broker.pub")
    served.serve()
    served.start("worker", "--lane", "tpu", "--url", (served.data / "url").read_text().strip())
    jobs = {
        tenant: JobsPublisher(served.bus_url, read_signer(served.folder / f"producer-{tenant}.key")[0])
        for tenant in tenants
    }
    replies = {tenant: Replies(served.bus_url, f"replies.{tenant}", ring, tenant=tenant) for tenant in tenants}
    for part in range(20):
        for tenant in tenants:
            asked = [{"body": a_body(f"{tenant} {part} {n}"), "idempotency_key": f"{part}-{n}"} for n in range(10)]
            jobs[tenant].publish(asked, reply_to=f"replies.{tenant}")
    jobs["red"].publish([{"body": a_body("red"), "idempotency_key": "0-0"}], reply_to="replies.red")
    jobs["red"].publish([{"body": a_body("red"), "idempotency_key": "forged"}], reply_to="replies.blue")
    told = {tenant: {} for tenant in tenants}

    def enough():
        for tenant in tenants:
            for one in replies[tenant].receive(0.2):
                told[tenant].setdefault(one.key, set()).add((one.status, one.job_id, one.body))
        return [len(one) for one in told.values()] == [200, 200] and len(told["red"]["0-0"]) == 2

    served.until(enough, "all replies")
    served.until(lambda: served.one("SELECT count(*) FROM reply") == 0, "nothing is left to be told")
    enough()
    refused = {status for status, _, _ in told["red"].pop("0-0")}
    assert refused == {"succeeded", "refused"}
    for tenant in tenants:
        assert {status for ends in told[tenant].values() for status, _, _ in ends} == {"succeeded"}
        assert {
            json.loads(body)["choices"][0]["message"]["content"].split()[0]
            for ends in told[tenant].values()
            for _, _, body in ends
        } == {tenant}
        assert "forged" not in told[tenant]
    blue, red = ({job for ends in told[tenant].values() for _, job, _ in ends} for tenant in tenants)
    assert not blue & red
    for one in (*jobs.values(), *replies.values()):
        one.close()

    rows = json.loads(served.broker("ledger", "summary", "--by", "tenant", "--format", "json"))
    assert [(row["tenant"], row["succeeded"]) for row in rows] == [("blue", 200), ("red", 201)]
    only = json.loads(served.broker("ledger", "summary", "--by", "tenant", "--tenant", "blue", "--format", "json"))
    assert [row["tenant"] for row in only] == ["blue"]
    # The HTTP door is the default tenant's: others' jobs are unknown there.
    said = served.broker("jobs", "get", format_id("job", min(blue)), code=2)
    assert "there is no job" in said
