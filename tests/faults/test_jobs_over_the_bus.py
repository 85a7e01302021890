"""Producers on the bus, as they run: keys by command, roles and workers as processes, replies, and a sealed ledger."""

from __future__ import annotations

import json
import shutil
import uuid
from urllib.parse import urlsplit, urlunsplit

import pytest

from broker.bus.topology import open_connection
from broker.keys import read_signer, read_trusted
from broker.sdk.jobs_bus import JobsPublisher, Replies
from tests.flow.program import kill_group
from tests.flow.served import Served, a_body

QUEUE = "replies.flow"


@pytest.fixture
def served(tmp_path, postgres_url, redis_url):
    """In a corner of Redis of the test's own."""
    prefix = f"broker-test-{uuid.uuid4().hex}-"
    # What a killed process held comes back after six seconds, and not after sixty.
    terms = f"global_keyprefix={prefix}&visibility_timeout=6"
    made = Served(tmp_path, postgres_url, urlunsplit(urlsplit(redis_url)._replace(query=terms)))
    yield made
    made.close()
    with open_connection(made.bus_url) as connection:
        client = connection.default_channel.client
        ours = list(client.scan_iter(f"{prefix}*"))
        if ours:
            client.delete(*ours)


def test_a_producers_key_is_of_one_tenant_with_a_plain_name(served):
    served.broker("keys", "producer", "create", "default")
    for odd in ("No Body", "../up", "a" * 65):
        assert "must be 1 to 64 of a-z, 0-9" in served.broker("keys", "producer", "create", odd, code=2)
    shutil.copy(served.folder / "producer-default.key", served.folder / "producer-blue.key")
    said = served.broker("keys", "producer", "create", "blue", code=2)
    assert "holds a key of producer default: move it away for one of producer blue" in said


def _capacity_is_known_and_told(served):
    served.until(lambda: "vm-7" in served.broker("instances", "list", "--format", "csv"), "the instance is shown")
    (instance,) = json.loads(served.broker("instances", "list", "--lane", "tpu", "--format", "json"))
    assert (instance["state"], instance["resource_id"]) == ("running", "vm-7")
    assert instance["list_nano_usd"] > 0
    served.until(
        lambda: '"lane":"tpu","desired":1,"ready":1,' in (served.folder / "lanes.log").read_text(), "the event"
    )


def test_jobs_over_the_bus_survive_a_kill_are_told_of_and_proven(served):
    served.broker("keys", "lane", "create", "tpu")
    served.broker("keys", "producer", "create", "default")
    signer, _ = read_signer(served.folder / "producer-default.key")
    ring = read_trusted(served.folder / "broker.pub")
    first = served.serve()
    served.start("lanes", "watch", "--format", "json")
    url = (served.data / "url").read_text().strip()
    served.start("worker", "--lane", "tpu", "--url", url, "--resource-id", "vm-7")
    jobs, replies = JobsPublisher(served.bus_url, signer), Replies(served.bus_url, QUEUE, ring)
    keys, told = [], {}

    def publish(messages):
        for number in range(messages):
            texts = [f"job {len(keys)} {number} {place}" for place in range(20)]
            keys.extend(jobs.publish([{"body": a_body(text)} for text in texts], reply_to=QUEUE))

    def hear(count, what):
        def enough():
            told.update({one.key: one for one in replies.receive(0.2)})
            return len(told) >= count

        served.until(enough, what)

    publish(10)
    hear(20, "the first replies")
    publish(10)
    kill_group(first)
    publish(10)  # while nobody takes them in
    served.serve()
    keys += jobs.publish([{"body": a_body("late"), "window": "never"}, {"body": a_body("good")}], reply_to=QUEUE)
    hear(602, "all replies")
    jobs.close()
    replies.close()

    _capacity_is_known_and_told(served)

    assert set(told) == set(keys)
    refused = told[keys[-2]]
    assert (refused.status, refused.job_id, refused.error_code) == ("refused", None, "invalid_field")
    ended = [one for one in told.values() if one is not refused]
    assert {one.status for one in ended} == {"succeeded"}
    assert json.loads(ended[0].body)["choices"][0]["message"]["content"]
    assert served.one("SELECT count(*) FROM job") == served.one("SELECT count(*) FROM job_outcome") == 601
    served.until(lambda: served.one("SELECT count(*) FROM reply") == 0, "nothing is left to be told")

    served.until(
        lambda: (
            served.one("SELECT max(tree_size) FROM ledger_checkpoint")
            == served.one("SELECT count(*) FROM ledger_batch")
        ),
        "all is sealed",
    )
    said = served.broker("ledger", "verify", "--trusted", "broker.pub")
    assert "of them published." in said
    assert "Every row is as it was written." in said
    proof = json.loads(served.broker("ledger", "prove", "--job", ended[0].job_id.hex()))
    assert [row["values"]["outcome"] for row in proof["rows"]][-1] == "succeeded"
    assert "a sealer is at work on this database" in served.broker("ledger", "seal", code=1)
