"""The served form when its database dies, is full, or loses a connection amid COMMIT: short campaigns."""

from __future__ import annotations

import pytest

from tests.harness.database_loss import (
    AwayTerms,
    DatabaseTerms,
    RecorderTerms,
    run_commit_cuts,
    run_database_away,
    run_database_kills,
    run_recorder_deaths,
)
from tests.harness.hardships import DiskTerms, run_full_disk

pytestmark = pytest.mark.slow


def test_kills_of_postgres_lose_and_double_nothing():
    report = run_database_kills(DatabaseTerms(jobs=900, times=2, pause_seconds=3.0, bus="redis"))
    report.print()
    assert report.faults == []


def test_a_database_that_is_away_for_longer_than_anyone_waits_holds_up_and_ends_nothing():
    """The full campaign, `database-away`, is a minute long and waits the 30 s of the product."""
    report = run_database_away(AwayTerms(jobs=600, away_seconds=7.0, retry_seconds=1.5, bus="redis"))
    report.print()
    assert report.faults == []


def test_connections_cut_amid_commit_keep_each_write_once():
    report = run_commit_cuts(DatabaseTerms(jobs=900, times=12, pause_seconds=0.3, bus="redis"))
    report.print()
    assert report.faults == []


def test_a_recorder_that_dies_about_its_commit_records_each_end_once():
    report = run_recorder_deaths(RecorderTerms(jobs=700, times=10))
    report.print()
    assert report.faults == []


def test_a_full_disk_under_the_database_holds_up_and_loses_nothing():
    report = run_full_disk(DiskTerms(jobs=1_500, times=1, full_seconds=6.0, bus="redis"))
    report.print()
    assert report.faults == []
