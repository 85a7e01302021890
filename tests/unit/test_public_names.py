"""What other people's programs import: from `broker` alone, each name loaded when it is asked for, keys as files."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

import broker
from broker import Client, DesiredEvents, JobsPublisher, Replies
from broker.bus.drivers.memory import discard_bus
from broker.bus.envelope import Kind, seal
from broker.clock import utc_now_us
from broker.domain.bus_jobs import REPLY_QUEUES, JobReply
from broker.domain.desired import DESIRED_QUEUE, LaneDesired
from broker.domain.errors import BrokerError
from broker.keys import load_or_create_signer, trust_text

ROOT = Path(__file__).parents[2]


def test_the_names_are_those_and_each_is_there():
    assert broker.__all__ == ["Client", "DesiredEvents", "JobsPublisher", "Replies"]
    assert [getattr(broker, name).__name__ for name in broker.__all__] == broker.__all__
    with pytest.raises(AttributeError, match="module 'broker' has no attribute 'BatchFiles'"):
        broker.BatchFiles  # noqa: B018 (asking is the test)


@pytest.mark.parametrize(
    ("name", "foreign"),
    [
        ("Client", ("sqlalchemy", "litestar", "celery", "kombu", "cryptography")),
        ("JobsPublisher", ("sqlalchemy", "litestar")),
        ("Replies", ("sqlalchemy", "litestar")),
        ("DesiredEvents", ("sqlalchemy", "litestar")),
    ],
)
def test_a_name_brings_no_broker_with_it(name, foreign):
    code = f"import sys, broker; before = len(sys.modules); broker.{name}; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    loaded = {module.partition(".")[0] for module in ran.stdout.split()}
    assert "broker" in loaded
    assert not loaded & set(foreign)


def test_keys_are_given_as_the_files_that_the_commands_wrote(tmp_path):
    name = uuid.uuid4().hex
    url, queue = f"lanemem://{name}", f"{REPLY_QUEUES}mine"
    signer, _ = load_or_create_signer(tmp_path, "broker")
    load_or_create_signer(tmp_path, "producer-mine")
    trusted = tmp_path / "broker.pub"
    trusted.write_text(trust_text([(signer.key_id, signer.public_bytes)]))
    jobs = JobsPublisher(url, tmp_path / "producer-mine.key")
    replies = Replies(url, queue, trusted, tenant="mine")
    desired = DesiredEvents(url, trusted)
    try:
        assert len(jobs.publish([{"body": {}}], reply_to=queue)) == 1
        now_us = utc_now_us()
        reply = JobReply("k", b"j" * 16, "succeeded")
        wanted = [LaneDesired(lane, 2, 1, 7, now_us) for lane in ("a", "b")]
        publish = jobs._publisher.publish_events
        publish(queue, [seal(signer, Kind.REPLY, "mine", reply, now_us=now_us, valid_us=60_000_000)])
        publish(
            DESIRED_QUEUE,
            [seal(signer, Kind.DESIRED, one.lane, one, now_us=now_us, valid_us=60_000_000) for one in wanted],
        )
        assert replies.receive(5) == [reply]
        assert desired.receive(5) == wanted
    finally:
        for one in (jobs, replies, desired):
            one.close()
        discard_bus(name)
    with pytest.raises(BrokerError, match="can't read the signing key"):
        JobsPublisher(url, tmp_path / "other.key")


def test_the_documents_import_from_broker_alone():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.py")]
    lines = [
        line.strip()
        for page in pages
        for line in page.read_text().splitlines()
        if line.strip().startswith("from broker")
    ]
    assert {line.split(" import ")[0] for line in lines} == {"from broker"}
    imported = {name.strip() for line in lines for name in line.split(" import ")[1].split(",")}
    assert imported <= set(broker.__all__)
    assert {Client.__name__, DesiredEvents.__name__} <= imported
