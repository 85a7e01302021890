"""The old schema, brought up to date in full use: no statement waits for long, and no row is lost."""

from __future__ import annotations

import time

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from broker.database.history import INSTALLED
from broker.database.migrating import upgrade
from broker.database.schema import check
from broker.rules.schema_fit import SchemaState
from tests.migration.probes import HOT, fill, held_snapshot, probing

ROWS = 100_000
WAIT_SECONDS_MAX = 2.0
SNAPSHOT_SECONDS = 4.0

COLUMNS = "; ".join(f"op.add_column('{table}', sa.Column('later', sa.Text))" for table in HOT)
INDEXES = (
    "online_indexes = (OnlineIndex('ix_attempt_model', 'attempt', ['model']), "
    "OnlineIndex('ix_job_group', 'job', ['group_id']), OnlineIndex('ix_shard_batch', 'shard', ['batch_id']))\n---pass"
)


def rows_in(engine, table):
    with engine.connect() as connection:
        return connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()


@pytest.fixture(params=[ROWS])
def old(postgres_url, request):
    """The schema of the build before this one, with rows."""
    engine = create_engine(postgres_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
        INSTALLED.run(connection, "0007")
    fill(engine, request.param)
    yield engine
    engine.dispose()


@pytest.mark.slow
def test_nobody_waits_while_the_schema_expands(old, postgres_url, later):
    """With this round's revisions, and further ones that touch every hot table."""
    history = later(_8001_columns=COLUMNS, _8002_indexes=INDEXES)
    said = []
    began = time.monotonic()
    before = {table: rows_in(old, table) for table in HOT}
    with probing(postgres_url) as probes, held_snapshot(old, SNAPSHOT_SECONDS, times=3):
        upgrade(old, history, report=said.append)
        seconds = time.monotonic() - began
    print(f"upgraded in {seconds:.1f} s beside {[probe.longest for probe in probes]}; {said}")
    assert check(old, history).state is SchemaState.CURRENT
    assert seconds > SNAPSHOT_SECONDS  # it did meet the reader
    assert any("locked by session" in sentence for sentence in said)
    for probe in probes:
        assert probe.failure is None
        assert probe.inserted > 100
        assert probe.longest.seconds < WAIT_SECONDS_MAX, probe.longest
        assert rows_in(old, probe.table) == before[probe.table] + probe.inserted


@pytest.mark.parametrize("old", [1_000], indirect=True)
@pytest.mark.slow
def test_the_probes_notice_an_upgrade_that_waits_for_its_locks(old, postgres_url):
    with probing(postgres_url) as probes, held_snapshot(old, WAIT_SECONDS_MAX + 1), old.begin() as connection:
        connection.execute(text("ALTER TABLE attempt ADD COLUMN later text"))
    waits = {probe.table: probe.longest.seconds for probe in probes}
    assert waits["attempt"] > WAIT_SECONDS_MAX
    assert waits["ready"] < WAIT_SECONDS_MAX
