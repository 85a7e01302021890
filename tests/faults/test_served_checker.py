"""The history checker finds what it is there for: each wrong is planted in the account of a run that went well."""

from __future__ import annotations

import msgspec
import psycopg
import pytest

from tests.harness.history import read_history, wait_for_ends
from tests.harness.producer import Producer
from tests.harness.stand import ALL_IN_ONE, LaneTerms, Stand, StandTerms

pytestmark = pytest.mark.slow

JOBS = 60
A_JOB = "(SELECT job_id FROM job ORDER BY job_id LIMIT 1)"

PLANTS = {
    "lost": f"DELETE FROM job_outcome WHERE job_id = {A_JOB}",
    "charged twice": "INSERT INTO attempt SELECT * FROM changed",
    "outcomes without their attempt": f"DELETE FROM attempt WHERE job_id = {A_JOB}",
    "extra calls without a trace": f"DELETE FROM attempt WHERE job_id = {A_JOB}",
    "faults in the ledger": f"UPDATE attempt SET run_us = run_us + 1 WHERE job_id = {A_JOB}",
    "nano-USD sealed": f"UPDATE attempt SET cost_nano_usd = cost_nano_usd + 1 WHERE job_id = {A_JOB}",
    "nano-USD of batches": "UPDATE batch_count SET cost_nano_usd = cost_nano_usd + 1",
    # With a lease that holds for years, or the rescuer would mend it before it is found.
    "shards left sent or running": (
        "UPDATE shard SET state = 'running', closed_us = NULL, lease_until_us = 1::bigint << 52"
    ),
    "doubled: names with two jobs": "UPDATE job SET custom_id = 'batch0-1', batch_id = NULL WHERE line_number = 1",
}


@pytest.fixture(scope="module")
def account():
    terms = StandTerms(lanes=[LaneTerms(name="tpu", delay_seconds=0.0)], layout=ALL_IN_ONE, bus="redis")
    with Stand(terms) as stand:
        producer = Producer(stand)
        producer.send_batch(JOBS)
        assert wait_for_ends(stand, producer, 60) >= 0
        assert read_history(stand, producer).faults == []
        for one in stand.workers + stand.roles[1:]:
            one.retire()
        yield stand, producer


@pytest.mark.parametrize("wrong", PLANTS)
def test_a_planted_wrong_is_found(account, wrong):
    stand, producer = account
    with psycopg.connect(stand.postgres.url) as connection:
        connection.execute("SET session_replication_role = replica")  # past the triggers that keep the ledger as it is
        _keep(connection)
        if "changed" in PLANTS[wrong]:
            connection.execute(
                f"CREATE TEMP TABLE changed AS SELECT * FROM attempt WHERE job_id = {A_JOB}; "
                "UPDATE changed SET seq = seq + 1000000, shard_index = shard_index + 1000"
            )
        connection.execute(PLANTS[wrong])
    try:
        found = read_history(stand, producer).faults
    finally:
        with psycopg.connect(stand.postgres.url) as connection:
            connection.execute("SET session_replication_role = replica")
            _put_back(connection)
    assert any(fault.startswith(wrong) for fault in found), found
    assert read_history(stand, producer).faults == []


def test_a_job_that_never_came_and_a_call_of_nobodys_are_found(account):
    stand, producer = account
    told = msgspec.structs.asdict(read_history(stand, producer))["figures"]
    assert told["acknowledged"] == told["ended as succeeded"] == told["engine calls"] == JOBS
    producer.acknowledged.add("never-came")
    with stand.call_log.open("a") as log:
        log.write("00" * 16 + "\n")
    found = read_history(stand, producer).faults
    assert "lost: 1" in found
    assert "calls of unknown jobs: 1" in found
    assert "extra calls without a trace: 1" in found


TABLES = ("job_outcome", "attempt", "batch_count", "shard", "job")


def _keep(connection):
    for table in TABLES:
        connection.execute(f"CREATE TABLE kept_{table} AS SELECT * FROM {table}")


def _put_back(connection):
    for table in TABLES:
        connection.execute(
            f"DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept_{table}; DROP TABLE kept_{table}"
        )
